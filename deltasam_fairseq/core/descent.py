"""The descent of every step: the gradient at the perturbed weights."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from deltasam_fairseq.core.ascent import is_usable
from deltasam_fairseq.core.batches import Batches, add_gradients
from deltasam_fairseq.core.passes import Passes
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.core.weight_space import WeightSpace


def descend(
    space: WeightSpace,
    direction: list[Tensor | None],
    norm: float,
    batches: Batches,
    losses: Tensor,
    *,
    rho: float,
    reduction: str,
    sentences: float,
    loss_scale: float = 1.0,
    alone: bool = False,
) -> tuple[Tensor, int]:
    """Add the gradient at the perturbed weights to ``.grad``.

    A direction whose norm is zero or not finite perturbs nothing. Losses that are
    finite at w and not at the perturbed weights are taken at w instead.

    Args:
        space: The parameters that are perturbed.
        direction: One tensor per parameter, or ``None``; consumed.
        norm: The direction's norm.
        batches: What shares the perturbation.
        losses: Their losses at w, detached.
        rho: L2 norm of the perturbation.
        reduction: ``mean`` or ``sum`` over sentences.
        sentences: How many there are to reduce over.
        loss_scale: Factor on the gradient.
        alone: Whether the other workers have perturbations of their own.

    Returns:
        The losses that were differentiated, detached, and how many fallbacks
        were taken.
    """
    fallbacks = 0
    if not is_usable(norm):
        direction, fallbacks = [None] * len(space), 1

    def accepts(perturbed: Tensor) -> bool:
        lost = torch.stack([(~torch.isfinite(x)).sum() for x in (losses, perturbed)]).tolist()
        at, there = lost if alone else batches.everywhere(*lost)
        return bool(at or not there)

    add = partial(
        add_gradients,
        batches,
        Passes.__call__,
        reduction=reduction,
        sentences=sentences,
        loss_scale=loss_scale,
    )
    with space.perturbed(direction, rho / norm if is_usable(norm) else 0.0):
        moved, accepted = add(accepts=accepts)
    if not accepted:
        moved, _ = add()
    return moved, fallbacks + (not accepted)


def let_workers_add_up(passes: Passes) -> None:
    """Let DistributedDataParallel reduce what single sentences left in ``.grad``.

    It does so in a backward pass. This one adds nothing, and every worker runs one,
    however many sentences it has.

    Args:
        passes: The last batch.
    """
    end = RandomState.capture(passes.params)
    with passes.restored():
        torch.autograd.backward(passes().sum() * 0)
    end.replay()
