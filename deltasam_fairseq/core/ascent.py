"""The ascent of SAM and delta-SAM: one direction for all sentences of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deltasam_fairseq.core.batches import Batches, joined
from deltasam_fairseq.core.estimators import Estimator, Weights, uniform, uniform_weights
from deltasam_fairseq.core.passes import Passes
from deltasam_fairseq.core.precision import (
    NoAutocast,
    full_precision,
    is_full_precision,
    is_half,
    wide,
)
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.core.weights import usable
from deltasam_fairseq.core.workers import add_up


class Ascent(NamedTuple):
    """Where to move, and what was seen on the way.

    Attributes:
        losses: ``l_i(w)``, shape ``(N,)``, detached.
        weights: The weights that the direction was made of.
        direction: One tensor per parameter, or ``None``.
        norm: The direction's norm, that of the gradient of the weighted mean loss, times the
            loss scale.
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
    batches: Batches,
    space: WeightSpace,
    prepare: Callable[[Passes], Callable[[Tensor], Weights]],
    *,
    falls_back: bool,
    loss_scale: float = 1.0,
    alone: bool = False,
) -> Ascent:
    """Find the steepest direction of the weighted losses, over all batches and workers.

    Args:
        batches: The update.
        space: The parameters that are perturbed.
        prepare: From a batch to a function from its losses at w to the weights.
        falls_back: Whether equal weights take the place of weights that leave no
            usable gradient.
        loss_scale: Factor on the losses, which the direction and its norm keep.
        alone: Whether the other workers have directions of their own.

    Returns:
        The ascent; no ``.grad`` was touched.
    """
    found = WeightedMean(space)
    at: list[Tensor] = []
    weighed: list[Weights] = []
    fallbacks = 0
    for passes in batches:
        with passes.local():
            weigh = prepare(passes)
            losses = passes()  # l_i(w), shape (N,)
            weights = weigh(losses.detach())  # g_i, shape (N,)
            # Several batches or workers decide together, by their common gradient, below.
            sole = len(batches) == 1 and (alone or passes.group is None)
            if falls_back and sole and not usable(weights.values):
                weights, fallbacks, falls_back = uniform_weights(losses), 1, False
            found.add(passes, losses, weights.values, alone=sole, loss_scale=loss_scale)
            at.append(losses.detach())
            weighed.append(weights)
            passes.leave()  # behind the backward pass, which runs checkpointed layers again
    gradients, sentences, reached = found.over_workers(None if alone else batches.group)
    # Eq. 7 moves the weights by rho v / ||v||, where v = sum_i g_i grad l_i / sum_i g_i.
    direction, norm = space.steepest(gradients)
    # A zero or infinite v has no direction; equal weights give that of SAM.
    if falls_back and not is_usable(norm):
        del losses, gradients, direction, found
        again = ascend(
            batches,
            space,
            lambda _: uniform_weights,
            falls_back=False,
            loss_scale=loss_scale,
            alone=alone,
        )
        return again._replace(fallbacks=1)
    weights = Weights(
        joined([w.values for w in weighed]), torch.stack([w.floored for w in weighed]).sum()
    )
    return Ascent(joined(at), weights, direction, norm, sentences, reached, fallbacks)


def is_usable(norm: float) -> bool:
    """Tell whether a direction of some norm can be followed."""
    return math.isfinite(norm) and norm > 0


class WeightedMean:
    """``sum_i g_i grad l_i / sum_i g_i``, of batch after batch.

    Args:
        params: The parameters.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._params = params
        self._mean: list[Tensor | None] = [None] * len(params)
        self._own = 0.0
        self._sentences = 0

    def add(
        self, passes: Passes, losses: Tensor, weights: Tensor, *, alone: bool, loss_scale: float
    ) -> None:
        """Differentiate the weighted mean of a batch's losses.

        Args:
            passes: The batch.
            losses: With their graph, which is used up.
            weights: g.
            alone: Whether no other batch or worker shares the mean.
            loss_scale: Factor on the gradient.
        """
        self._sentences += losses.numel()
        # Only ratios between weights matter (Eq. 7), so the mean weight is made 1:
        # tiny weights would otherwise make half-precision gradients underflow to zero.
        relative = (weights / weights.mean()).to(losses.dtype)
        own = 0.0 if alone else weights.sum().item()
        if own == 0 and not alone:  # all weights are zero, and 0 / 0 is not a number
            relative = torch.zeros_like(relative)
        gradients = passes.ascend(wide((losses * relative).mean()) * loss_scale)
        if self._own == 0:
            self._mean, self._own = _filled_up(gradients, self._mean), own
            return
        # m <- m + (g - m) own / (all weights so far)
        self._own += own
        share = own / self._own
        for place, (mean, gradient) in enumerate(zip(self._mean, gradients, strict=True)):
            if mean is not None:
                self._mean[place] = wide(mean).mul_(1 - share)
            if gradient is not None:
                part = wide(gradient).mul_(share)
                kept = self._mean[place]
                self._mean[place] = part if kept is None else kept.add_(part)

    def over_workers(self, group: Any) -> tuple[list[Tensor | None], float, list[Tensor]]:
        """Take the mean over all workers, too.

        Args:
            group: The workers that share it, if there are several.

        Returns:
            The gradients, the number of sentences, and the parameters that were reached.
        """
        if group is None:
            reached = [g is not None for g in self._mean]
            return self._mean, self._sentences, _marked(self._params, reached)
        filled = [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(self._params, self._mean, strict=True)
        ]
        # A worker's weighted mean is (sum of g_i grad l_i) / (sum of g_i): both sums are
        # added up over the workers, and divided then.
        _, sentences, *marks = add_up(
            filled,
            [self._own, float(self._sentences), *(float(g is not None) for g in self._mean)],
            group,
            factor=self._own,
            divisor=lambda numbers: numbers[0],
        )
        return list(filled), sentences, _marked(self._params, marks)


def _filled_up(
    gradients: Sequence[Tensor | None], others: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Return gradients, with zeros where a batch without weight alone has reached."""
    return [
        torch.zeros_like(o) if g is None and o is not None else g
        for g, o in zip(gradients, others, strict=True)
    ]


def _marked(params: Sequence[Tensor], marks: Sequence[float]) -> list[Tensor]:
    return [param for param, mark in zip(params, marks, strict=True) if mark]
