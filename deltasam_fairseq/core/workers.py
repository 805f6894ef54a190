"""Sums over several workers, which a step makes itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

# Gradients are added up in pieces of at most this many elements (256 MiB of
# float32), so that the reduction never needs a whole copy of the model.
BUCKET_ELEMENTS = 2**26


def add_up(
    tensors: Sequence[Tensor],
    numbers: Sequence[float],
    group: Any,
    *,
    factor: float = 1.0,
    divisor: Callable[[list[float]], float] = lambda _: 1.0,
) -> list[float]:
    """Sum tensors and a few numbers over all workers, in place.

    The sums are taken in float32 (float64 for float64): in half precision the
    numbers would be rounded, and the tensors might overflow.

    Args:
        tensors: The same shapes, dtypes and order on every worker.
        numbers: The same count on every worker; they travel with the first bucket.
        group: Their process group.
        factor: What this worker's tensors are multiplied by before they are summed.
        divisor: What the summed tensors are divided by, a function of the
            summed numbers.

    Returns:
        The summed numbers.

    Collectives:
        One all-reduce for every :data:`BUCKET_ELEMENTS` elements or part of it, if all
        tensors are of one dtype and on one device.
    """
    summed: list[float] = []
    extra = list(numbers)
    share = 1.0
    for bucket in _buckets(tensors):
        kind = torch.promote_types(bucket[0].dtype, torch.float32)
        parts = [t.reshape(-1).to(kind) for t in bucket]
        flat = torch.cat([*parts, parts[0].new_tensor(extra)])
        flat[: flat.numel() - len(extra)].mul_(factor)
        _all_reduce(flat, group)
        if extra:
            summed = flat[-len(extra) :].tolist()
            share, extra = divisor(summed), []
        offset = 0
        for tensor in bucket:
            part = flat[offset : offset + tensor.numel()]
            tensor.copy_(part.div_(share).view_as(tensor))
            offset += tensor.numel()
    return summed


def total(numbers: Sequence[float], group: Any, device: torch.device) -> list[float]:
    """Sum numbers over all workers.

    Args:
        numbers: This worker's, as many as on the others.
        group: Their process group.
        device: Where the backend of the group can sum.

    Returns:
        The sums.
    """
    sums = torch.tensor(numbers, dtype=torch.float64, device=device)
    _all_reduce(sums, group)
    found: list[float] = sums.tolist()
    return found


def largest(number: float, device: torch.device) -> float:
    """Find the largest of all workers' numbers.

    Args:
        number: This worker's; one that is not finite counts as 0.
        device: Where the backend of the default group can compare.

    Returns:
        It; ``number`` itself where there is one worker.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return number
    found = torch.tensor(number, dtype=torch.float64, device=device).nan_to_num(0, 0, 0)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return float(found)


def _all_reduce(flat: Tensor, group: Any) -> None:
    try:
        distributed.all_reduce(flat, group=group)
    except RuntimeError as error:
        raise RuntimeError(
            "the workers could not add up the ascent's gradient: one of them has stopped, or "
            "the network is gone. Nothing of this update was saved; start all workers "
            f"again, and training goes on from the last checkpoint. ({error})"
        ) from error


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.device]:
    return tensor.dtype, tensor.device


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        fits = size + tensor.numel() <= BUCKET_ELEMENTS
        if bucket and not (fits and _kind(tensor) == _kind(bucket[0])):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
