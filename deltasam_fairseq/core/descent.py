"""The descent of every step: the gradient at the perturbed weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed

from deltasam_fairseq.core.ascent import is_usable
from deltasam_fairseq.core.passes import Passes
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.core.workers import total


def descend(
    space: WeightSpace,
    direction: list[Tensor | None],
    norm: float,
    losses_function: Callable[[], Tensor],
    losses: Tensor,
    *,
    rho: float,
    reduce: Callable[[Tensor], Tensor],
    group: Any = None,
) -> tuple[Tensor, int]:
    """Add the gradient at the perturbed weights to ``.grad``.

    A direction whose norm is zero or not finite perturbs nothing. Losses that are
    finite at w and not at the perturbed weights are taken at w instead.

    Args:
        space: The parameters that are perturbed.
        direction: One tensor per parameter, or ``None``; consumed.
        norm: The direction's norm.
        losses_function: One forward pass, of any shape.
        losses: Its losses at w, detached.
        rho: L2 norm of the perturbation.
        reduce: From the losses to what is differentiated.
        group: The workers that share the perturbation.

    Returns:
        The losses that were differentiated, detached, and how many fallbacks
        were taken.
    """
    fallbacks = 0
    if not is_usable(norm):
        direction, fallbacks = [None] * len(space), 1
    with space.perturbed(direction, rho / norm if is_usable(norm) else 0.0):
        perturbed_losses = losses_function()
        lost = torch.stack(
            [(~torch.isfinite(x.detach())).sum() for x in (losses, perturbed_losses)]
        ).tolist()
        if group is not None:
            lost = total(lost, group, losses.device)
        if lost[0] or not lost[1]:
            torch.autograd.backward(reduce(perturbed_losses))
            return perturbed_losses.detach(), fallbacks
    perturbed_losses = losses_function()
    torch.autograd.backward(reduce(perturbed_losses))
    return perturbed_losses.detach(), fallbacks + 1


def reduced(
    reduction: str, group: Any, sentences: float, *, here: int | None = None
) -> Callable[[Tensor], Tensor]:
    """Return the descent's reduction over sentences, of one process with all of them.

    Args:
        reduction: ``mean`` or ``sum``.
        group: The workers, if there are several.
        sentences: How many sentences they have together.
        here: How many this worker has, if it reduces them one by one.

    Returns:
        A function from losses to a scalar.
    """
    if group is None and here is None:
        return torch.mean if reduction == "mean" else torch.sum
    # DistributedDataParallel divides the sum over workers by their number.
    workers = 1 if group is None else distributed.get_world_size(group)
    share = (sentences if reduction == "mean" else 1) / workers
    return lambda losses: losses.sum() / share


def everywhere(sentences: int, group: Any, device: torch.device) -> float:
    """Count the sentences of all workers.

    Args:
        sentences: This worker's number.
        group: The workers, if there are several.
        device: Where their backend can sum.

    Returns:
        Their sum.
    """
    return sentences if group is None else total([sentences], group, device)[0]


def let_workers_add_up(passes: Passes) -> None:
    """Let DistributedDataParallel reduce what single sentences left in ``.grad``.

    It does so in a backward pass. This one adds nothing, and every worker runs one,
    however many sentences it has.

    Args:
        passes: The batch.
    """
    end = RandomState.capture(passes.params)
    with passes.restored():
        torch.autograd.backward(passes().sum() * 0)
    end.replay()
