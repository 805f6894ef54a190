"""One sharpness-aware step on one batch, for a plain PyTorch loop.

Each function leaves the descent gradient in ``.grad``, added to what was
there, and the inner optimizer does the rest. The fairseq plugin builds its
step from the same pieces (:mod:`~deltasam_fairseq.core.estimators`,
:mod:`~deltasam_fairseq.core.perturb`), because fairseq's task runs the passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deltasam_fairseq.core.checks import not_negative, one_of
from deltasam_fairseq.core.estimators import (
    Estimator,
    LossesFunction,
    finite_difference,
    uniform,
    uniform_weights,
)
from deltasam_fairseq.core.graph import gradients_added, gradients_aside, take_gradients
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.core.space import WeightSpace
from deltasam_fairseq.core.weights import effective_sentences, usable


class StepReport(NamedTuple):
    """What one step saw; every tensor is detached.

    Args:
        losses: ``l_i(w)``, shape ``(N,)``, before the update.
        perturbed_losses: ``l_i`` at the perturbed weights, shape ``(N,)``.
        weights: ``g_i``, shape ``(N,)``, no unit; ones where they are not used.
        gradient_norm: Norm of the gradient of the (weighted) mean loss that the
            ascent followed; for ``per_instance`` the mean of the sentences'
            norms; 0 for ``none``.
        floored: How many weights had their denominator raised to eta.
        fallbacks: How often a fallback was taken: weights that were all zero or
            not finite (uniform ones were used), an ascent gradient that was zero
            or not finite (nothing was perturbed), or losses that are finite at
            ``w`` but not at the perturbed weights (the gradient is that at ``w``).
    """

    losses: Tensor
    perturbed_losses: Tensor
    weights: Tensor
    gradient_norm: float
    floored: int
    fallbacks: int

    @property
    def sharpness(self) -> Tensor:
        """Mean over sentences of ``l_i(w + eps) - l_i(w)``, scalar, nats."""
        return (self.perturbed_losses - self.losses).mean()

    @property
    def effective_sentences(self) -> Tensor:
        """Effective number of sentences, ``(sum g)^2 / sum g^2``, scalar."""
        return effective_sentences(self.weights)


def plain_step(
    params: Sequence[Tensor], losses_function: LossesFunction, *, reduction: str = "mean"
) -> StepReport:
    """Run the ordinary forward and backward pass.

    Args:
        params: The trainable parameters, each once; gradients are added to them.
        losses_function: One forward pass of the batch, shape ``(N,)``, nats.
        reduction: ``mean`` or ``sum`` over sentences.

    Returns:
        The report, with the loss at ``w`` in both places.
    """
    del params
    losses = _checked(losses_function())
    torch.autograd.backward(_reduce(losses, reduction))
    at = losses.detach()
    return StepReport(at, at, torch.ones_like(at), 0.0, 0, 0)


def sam_step(
    params: Sequence[Tensor],
    losses_function: LossesFunction,
    *,
    rho: float,
    reduction: str = "mean",
) -> StepReport:
    """Take one SAM step: ascend on the whole batch, descend there (Eq. 1, Alg. 1).

    Args:
        params: The trainable parameters, each once, or their
            :class:`~deltasam_fairseq.core.space.WeightSpace`.
        losses_function: One forward pass of the batch, shape ``(N,)``, nats.
        rho: L2 norm of the perturbation, at least 0.
        reduction: ``mean`` or ``sum`` over sentences, of the descent.

    Returns:
        The report; its losses are those at ``w``, before the update.

    State:
        Adds the descent gradient to ``.grad``; weights are restored bit for
        bit; random generators end where one pass would leave them. Buffers that
        a forward pass updates, such as BatchNorm's statistics, see every pass.

    Cost:
        2 forward and 2 backward passes, one copy of the parameters.

    Source:
        Foret et al. 2020; Zhou et al. 2022, Eq. 1 and Alg. 1.
    """
    return delta_sam_step(
        params,
        losses_function,
        rho=rho,
        eta=1.0,
        seed=0,
        estimator=uniform,
        reduction=reduction,
    )


def delta_sam_step(
    params: Sequence[Tensor],
    losses_function: LossesFunction,
    *,
    rho: float,
    eta: float,
    seed: int,
    estimator: Estimator = finite_difference,
    probed: Sequence[Tensor] | None = None,
    reduction: str = "mean",
) -> StepReport:
    """Take one delta-SAM step: weigh, ascend on the weighted batch, descend unweighted.

    Args:
        params: The trainable parameters, each once, or their
            :class:`~deltasam_fairseq.core.space.WeightSpace`.
        losses_function: One forward pass of the batch, shape ``(N,)``, nats.
        rho: L2 norm of the perturbation and of the random probe, at least 0.
        eta: Floor under the slope of Eq. 5, nats, greater than 0.
        seed: Seed of the random direction.
        estimator: How the weights are estimated; Eq. 5 by default.
        probed: The parameters that the random direction covers; those that
            receive a gradient. All of ``params`` when left out.
        reduction: ``mean`` or ``sum`` over sentences, of the descent.

    Returns:
        The report; its losses are those at ``w``, before the update.

    State:
        As for :func:`sam_step`.

    Cost:
        4 forward and 2 backward passes with Eq. 5, one copy of the parameters.

    Source:
        Zhou et al. 2022, Alg. 1, Eq. 5 to 7.
    """
    rho = not_negative(rho, "rho")
    one_of(reduction, "reduction", ("mean", "sum"))
    space = WeightSpace.of(params)
    randomness = RandomState.capture(params)

    def replayed() -> Tensor:
        randomness.replay()
        return _checked(losses_function())

    weigh = estimator(replayed, params if probed is None else probed, rho=rho, eta=eta, seed=seed)
    fallbacks = 0
    with gradients_aside(params):
        losses = replayed()
        weights, floored = weigh(losses.detach())
        if not usable(weights):
            weights, floored, fallbacks = *uniform_weights(losses), fallbacks + 1
        torch.autograd.backward(_weighted(losses, weights))
        ascent, norm = space.steepest(take_gradients(params))
        if not _is_usable(norm) and estimator is not uniform and not fallbacks:
            del ascent
            losses = replayed()
            weights, floored, fallbacks = *uniform_weights(losses), fallbacks + 1
            torch.autograd.backward(_weighted(losses, weights))
            ascent, norm = space.steepest(take_gradients(params))
    at = losses.detach()
    there, extra = _descend(
        space, ascent, norm, replayed, at, rho=rho, reduce=lambda x: _reduce(x, reduction)
    )
    return StepReport(at, there, weights, norm, int(floored), fallbacks + extra)


def per_instance_step(
    params: Sequence[Tensor],
    losses_function: LossesFunction,
    *,
    rho: float,
    loss_of: Callable[[int], Tensor] | None = None,
    reduction: str = "mean",
) -> StepReport:
    """Give every sentence its own perturbation, one sentence at a time (Eq. 2).

    The obviously correct loop. Each sentence is scored by a pass over the whole
    batch, with the batch's dropout, unless ``loss_of`` scores one alone.

    Args:
        params: The trainable parameters, each once, or their
            :class:`~deltasam_fairseq.core.space.WeightSpace`.
        losses_function: One forward pass of the batch, shape ``(N,)``, nats.
        rho: L2 norm of each sentence's perturbation, at least 0.
        loss_of: Loss of sentence ``i`` alone, a tensor of one element. Its
            dropout is drawn sentence after sentence.
        reduction: ``mean`` or ``sum`` over sentences, of the descent.

    Returns:
        The report; ``gradient_norm`` is the mean over sentences.

    State:
        As for :func:`sam_step`; with ``loss_of``, random generators end where
        one pass over each sentence would leave them.

    Cost:
        2N + 1 forward and 2N backward passes, one copy of the parameters.

    Source:
        Zhou et al. 2022, Eq. 2, section 5.5.
    """
    rho = not_negative(rho, "rho")
    one_of(reduction, "reduction", ("mean", "sum"))
    space = WeightSpace.of(params)
    start = RandomState.capture(params)
    with torch.no_grad():
        count = _checked(losses_function()).numel()
    torch.clear_autocast_cache()  # its casts were made without a graph
    start.replay()

    def one(index: int) -> Tensor:
        if loss_of is None:
            return losses_function()[index]
        return loss_of(index).reshape(())

    at, there, norms, fallbacks = [], [], [], 0
    share = count if reduction == "mean" else 1
    with gradients_added(params):
        for index in range(count):
            randomness = start if loss_of is None else RandomState.capture(params)

            def replayed(index: int = index, randomness: RandomState = randomness) -> Tensor:
                randomness.replay()
                return one(index)

            with gradients_aside(params):
                loss = replayed()
                torch.autograd.backward(loss)
                ascent, norm = space.steepest(take_gradients(params))
            at.append(loss.detach())
            moved, extra = _descend(
                space, ascent, norm, replayed, at[-1], rho=rho, reduce=lambda x: x / share
            )
            there.append(moved)
            norms.append(norm)
            fallbacks += extra
    losses = torch.stack(at)
    return StepReport(
        losses,
        torch.stack(there),
        torch.ones_like(losses),
        gradient_norm=sum(norms) / count,
        floored=0,
        fallbacks=fallbacks,
    )


def _descend(
    space: WeightSpace,
    ascent: list[Tensor | None],
    norm: float,
    losses_function: LossesFunction,
    at: Tensor,
    *,
    rho: float,
    reduce: Callable[[Tensor], Tensor],
) -> tuple[Tensor, int]:
    """Add the gradient at the perturbed weights to ``.grad``.

    An ascent that is zero or not finite perturbs nothing. Losses that are
    finite at w and not at the perturbed weights are taken at w instead.

    Returns:
        The losses that were differentiated, detached, and how many fallbacks
        were taken.
    """
    fallbacks = 0
    if not _is_usable(norm):
        ascent, fallbacks = [None] * len(space), 1
    with space.perturbed(ascent, _scale(rho, norm)):
        there = losses_function()
        if torch.isfinite(there).all() or not torch.isfinite(at).all():
            torch.autograd.backward(reduce(there))
            return there.detach(), fallbacks
    there = losses_function()
    torch.autograd.backward(reduce(there))
    return there.detach(), fallbacks + 1


def _checked(losses: Tensor) -> Tensor:
    if losses.dim() != 1 or not losses.numel():
        raise ValueError(
            "the losses function must return one loss per sentence, a vector of shape (N,) "
            f"with N > 0; got shape {tuple(losses.shape)} (call it with reduction='none')"
        )
    return losses


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    one_of(reduction, "reduction", ("mean", "sum"))
    return losses.mean() if reduction == "mean" else losses.sum()


def _weighted(losses: Tensor, weights: Tensor) -> Tensor:
    # Only ratios between weights matter (Eq. 7), so the mean weight is made 1:
    # tiny weights would otherwise push half-precision gradients below zero.
    return (losses * (weights / weights.mean()).to(losses.dtype)).mean()


def _is_usable(norm: float) -> bool:
    return math.isfinite(norm) and norm > 0


def _scale(rho: float, norm: float) -> float:
    return rho / norm if _is_usable(norm) else 0.0
