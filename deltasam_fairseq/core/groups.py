"""Groups of an update's sentences, which have a perturbation each (m-sharpness)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

# Rows of a group in each micro-batch.
Group = list[list[int]]


def dealt(
    numbers: Sequence[Sequence[int]], groups: int, seed: int, losses: Tensor | None = None
) -> list[Group]:
    """Deal the sentences of some micro-batches out to groups of like size.

    Args:
        numbers: Of the sentences of each micro-batch, by which they are told apart: how an
            update is split makes no difference.
        groups: How many groups, or as many as there are sentences if these are fewer.
        seed: Of the order in which they are dealt.
        losses: Losses of all sentences, one micro-batch after the other. Neighbours in their
            order come together; without them a random order is cut.

    Returns:
        For each group its rows of each micro-batch, in order; the group of the last sentence
        comes last.

    Example:
        >>> dealt([[7, 8], [5, 6]], 2, seed=0, losses=torch.tensor([0.1, 0.9, 0.2, 0.8]))
        [[[0], [0]], [[1], [1]]]
    """
    everyone = torch.tensor([number for batch in numbers for number in batch])
    order = everyone.argsort(stable=True)
    if losses is None:
        draw = torch.Generator().manual_seed(seed)
        order = order[torch.randperm(len(order), generator=draw)]
    else:
        order = order[losses.cpu()[order].argsort(stable=True)]
    whole = len(everyone)
    parts = [sorted(part.tolist()) for part in order.tensor_split(min(groups, whole) or 1)]
    parts.sort(key=lambda part: part[-1:] == [whole - 1])
    dealt_out: list[Group] = [[] for _ in parts]
    start = 0
    for batch in numbers:
        end = start + len(batch)
        for group, part in zip(dealt_out, parts, strict=True):
            group.append([row - start for row in part if start <= row < end])
        start = end
    return dealt_out


def numbered(counts: Sequence[int]) -> list[range]:
    """Number the sentences of some batches one after the other, from 0.

    Args:
        counts: How many sentences each batch has.

    Returns:
        The numbers of each batch.
    """
    ends = list(itertools.accumulate(counts))
    return [range(end - count, end) for count, end in zip(counts, ends, strict=True)]
