"""The ascent of SAM and delta-SAM: one direction for all sentences of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deltasam_fairseq.core.estimators import Estimator, Weights, uniform, uniform_weights
from deltasam_fairseq.core.passes import Passes
from deltasam_fairseq.core.precision import NoAutocast, full_precision, is_full_precision, is_half
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.core.weights import usable
from deltasam_fairseq.core.workers import add_up


class Ascent(NamedTuple):
    """Where to move, and what was seen on the way.

    Attributes:
        losses: ``l_i(w)``, shape ``(N,)``, detached.
        weights: The weights that the direction was made of.
        direction: One tensor per parameter, or ``None``.
        norm: The direction's norm, that of the gradient of the weighted mean loss.
        sentences: How many sentences of all workers share the direction.
        reached: The parameters that received a gradient on any worker.
        fallbacks: 1 if equal weights took the place of unusable ones, else 0.
    """

    losses: Tensor
    weights: Weights
    direction: list[Tensor | None]
    norm: float
    sentences: float
    reached: list[Tensor]
    fallbacks: int = 0


def in_full_precision(
    estimator: Estimator,
    passes: Passes,
    params: Sequence[Tensor],
    *,
    rho: float,
    eta: float,
    seed: int,
) -> Callable[[Tensor], Weights]:
    """Prepare weights whose passes run in float32, whatever the closure's own run in.

    The bend of Eq. 5 is smaller than what autocast or TF32 rounds away. Where these are
    in use, the loss at w comes from one more pass: a difference between losses of two
    precisions is no bend.

    Args:
        estimator: The estimator.
        passes: The batch.
        params: The parameters that the random direction covers.
        rho: As for the estimator.
        eta: As for the estimator.
        seed: As for the estimator.

    Returns:
        A function from the losses at w to the weights.
    """
    autocast = NoAutocast({p.device.type for p in passes.params})
    coarse = not is_full_precision(p for p in passes.params if not is_half(p))

    def losses() -> Tensor:
        with full_precision(passes.params), autocast:
            return passes()

    weigh = estimator(losses, params, rho=rho, eta=eta, seed=seed)
    if estimator is uniform or not (coarse or autocast.met):
        return weigh
    with torch.no_grad():
        weights = weigh(losses())
    return lambda _: weights


def ascend(
    passes: Passes,
    space: WeightSpace,
    weigh: Callable[[Tensor], Weights],
    *,
    falls_back: bool,
) -> Ascent:
    """Find the steepest direction of the weighted losses, over all workers.

    Args:
        passes: The batch.
        space: The parameters that are perturbed.
        weigh: From the losses at w to the weights.
        falls_back: Whether equal weights take the place of weights that leave no
            usable gradient.

    Returns:
        The ascent; no ``.grad`` was touched.
    """
    losses = passes()  # l_i(w), shape (N,)
    weights, fallbacks = weigh(losses.detach()), 0  # g_i, shape (N,)
    # Several workers must decide alike, so they decide by their common gradient, below.
    if falls_back and passes.group is None and not usable(weights.values):
        weights, fallbacks, falls_back = uniform_weights(losses), 1, False
    gradients, sentences, reached = _gradients(passes, losses, weights.values)
    passes.leave()  # behind the backward pass, which runs checkpointed layers again
    # Eq. 7 moves the weights by rho v / ||v||, where v = sum_i g_i grad l_i / sum_i g_i.
    direction, norm = space.steepest(gradients)
    # A zero or infinite v has no direction; equal weights give that of SAM.
    if falls_back and not is_usable(norm):
        del losses, gradients, direction
        return ascend(passes, space, uniform_weights, falls_back=False)._replace(fallbacks=1)
    return Ascent(losses.detach(), weights, direction, norm, sentences, reached, fallbacks)


def is_usable(norm: float) -> bool:
    """Tell whether a direction of some norm can be followed."""
    return math.isfinite(norm) and norm > 0


def _gradients(
    passes: Passes, losses: Tensor, weights: Tensor
) -> tuple[list[Tensor | None], float, list[Tensor]]:
    """Differentiate the weighted mean of the losses of all workers.

    Returns:
        The gradients, the number of sentences, and the parameters that were reached.
    """
    # Only ratios between weights matter (Eq. 7), so the mean weight is made 1:
    # tiny weights would otherwise make half-precision gradients underflow to zero.
    relative = (weights / weights.mean()).to(losses.dtype)
    if passes.group is None:
        gradients = passes.ascend((losses * relative).mean())
        return gradients, losses.numel(), _marked(passes.params, [g is not None for g in gradients])
    own = weights.sum().item()
    if own == 0:  # all weights of this worker are zero, and 0 / 0 is not a number
        relative = torch.zeros_like(relative)
    gradients = passes.ascend((losses * relative).mean())
    filled = [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(passes.params, gradients, strict=True)
    ]
    # A worker's weighted mean is (sum of g_i grad l_i) / (sum of g_i): both sums are
    # added up over the workers, and divided then.
    _, sentences, *marks = add_up(
        filled,
        [own, float(losses.numel()), *(float(g is not None) for g in gradients)],
        passes.group,
        factor=own,
        divisor=lambda numbers: numbers[0],
    )
    return list(filled), sentences, _marked(passes.params, marks)


def _marked(params: Sequence[Tensor], marks: Sequence[float]) -> list[Tensor]:
    return [param for param, mark in zip(params, marks, strict=True) if mark]
