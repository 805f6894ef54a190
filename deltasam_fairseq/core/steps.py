"""One sharpness-aware step, for a plain PyTorch loop.

Each function leaves the descent gradient in ``.grad``, added to what was
there, and the inner optimizer does the rest. An update of several batches gives a list of
losses functions: what is shared by a batch is then shared by all of them, and the sentences
of all are reduced over. The fairseq plugin builds its
step from the same pieces (:mod:`~deltasam_fairseq.core.estimators`,
:mod:`~deltasam_fairseq.core.perturb`), because fairseq's task runs the passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from deltasam_fairseq.core.ascent import Ascent, ascend, in_full_precision
from deltasam_fairseq.core.batches import (
    Batches,
    LossesFunctions,
    add_gradients,
    checked_batches,
    factor_of,
)
from deltasam_fairseq.core.checks import not_negative, one_of
from deltasam_fairseq.core.covered import Covered
from deltasam_fairseq.core.descent import descend
from deltasam_fairseq.core.estimators import (
    Estimator,
    finite_difference,
    uniform,
)
from deltasam_fairseq.core.passes import Passes
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.core.weights import effective_sentences


class StepReport(NamedTuple):
    """What one step saw; every tensor is detached.

    Attributes:
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
        overflow: Whether a gradient was not finite because a loss scale was too
            large. The update is to be skipped: what is in ``.grad`` is no gradient.
    """

    losses: Tensor
    perturbed_losses: Tensor
    weights: Tensor
    gradient_norm: float
    floored: int
    fallbacks: int
    overflow: bool = False

    @property
    def sharpness(self) -> Tensor:
        """Mean over sentences of ``l_i(w + eps) - l_i(w)``, scalar, nats."""
        return (self.perturbed_losses - self.losses).mean()

    @property
    def effective_sentences(self) -> Tensor:
        """Effective number of sentences, ``(sum g)^2 / sum g^2``, scalar."""
        return effective_sentences(self.weights)


def plain_step(
    params: Sequence[Tensor],
    losses_function: LossesFunctions,
    *,
    reduction: str = "mean",
    loss_scale: float | None = None,
) -> StepReport:
    """Run the ordinary forward and backward pass.

    Args:
        params: The trainable parameters, each once; gradients are added to them.
        losses_function: One forward pass of the batch, shape ``(N,)``, nats, or of
            each batch of the update.
        reduction: ``mean`` or ``sum`` over sentences.
        loss_scale: Factor on the gradient, for half precision.

    Returns:
        The report, with the loss at ``w`` in both places.
    """
    one_of(reduction, "reduction", ("mean", "sum"))
    batches = checked_batches(params, losses_function)

    at, _ = add_gradients(
        batches, Passes.__call__, reduction=reduction, loss_scale=factor_of(loss_scale)
    )
    return StepReport(at, at, torch.ones_like(at), 0.0, 0, 0)


def sam_step(
    params: Sequence[Tensor],
    losses_function: LossesFunctions,
    *,
    rho: float,
    reduction: str = "mean",
    loss_scale: float | None = None,
) -> StepReport:
    """Take one SAM step: ascend on the whole batch, descend there (Eq. 1, Alg. 1).

    Args:
        params: The trainable parameters, each once, or their
            :class:`~deltasam_fairseq.core.weight_space.WeightSpace`.
        losses_function: As for :func:`plain_step`.
        rho: L2 norm of the perturbation, at least 0.
        reduction: ``mean`` or ``sum`` over sentences, of the descent.
        loss_scale: As for :func:`plain_step`.

    Returns:
        The report; its losses are those at ``w``, before the update.

    State:
        Adds the descent gradient to ``.grad``, of the parameters and of any other
        leaf; weights are restored bit for bit; random generators and buffers
        (BatchNorm's statistics, say) end where one pass at w would leave them.

    Collectives:
        Under DistributedDataParallel two all-reduces besides its own: of the
        ascent gradient, and of whether the perturbed losses are finite.

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
        loss_scale=loss_scale,
    )


def delta_sam_step(
    params: Sequence[Tensor],
    losses_function: LossesFunctions,
    *,
    rho: float,
    eta: float,
    seed: int,
    estimator: Estimator = finite_difference,
    probed: Sequence[Tensor] | Covered | None = None,
    reduction: str = "mean",
    loss_scale: float | None = None,
) -> StepReport:
    """Take one delta-SAM step: weigh, ascend on the weighted batch, descend unweighted.

    Args:
        params: The trainable parameters, each once, or their
            :class:`~deltasam_fairseq.core.weight_space.WeightSpace`.
        losses_function: As for :func:`plain_step`.
        rho: L2 norm of the perturbation and of the random probe, at least 0.
        eta: Floor under the slope of Eq. 5, nats, greater than 0.
        seed: Seed of the random direction.
        estimator: How the weights are estimated; Eq. 5 by default.
        probed: The parameters that the random direction covers; those that
            receive a gradient. All of ``params`` when left out. A
            :class:`~deltasam_fairseq.core.covered.Covered` grows by what this
            batch is the first to reach.
        reduction: ``mean`` or ``sum`` over sentences, of the descent.
        loss_scale: As for :func:`plain_step`.

    Returns:
        The report; its losses are those at ``w``, before the update.

    State:
        As for :func:`sam_step`.

    Cost:
        4 forward and 2 backward passes with Eq. 5, one copy of the parameters;
        3 forward and 1 backward pass more where ``probed`` grows.

    Source:
        Zhou et al. 2022, Alg. 1, Eq. 5 to 7.
    """
    rho = not_negative(rho, "rho")
    one_of(reduction, "reduction", ("mean", "sum"))
    space = WeightSpace.of(params)
    batches, factor = checked_batches(space, losses_function), factor_of(loss_scale)
    with batches.restored():
        ascent = ascended(
            batches, space, probed, estimator, rho=rho, eta=eta, seed=seed, loss_scale=factor
        )
        perturbed_losses, fallbacks = ascent.losses, 0
        overflow = loss_scale is not None and not math.isfinite(ascent.norm)
        if not overflow:
            perturbed_losses, fallbacks = descend(
                space,
                ascent.direction,
                ascent.norm,
                batches,
                ascent.losses,
                rho=rho,
                reduction=reduction,
                sentences=ascent.sentences,
                loss_scale=factor,
            )
    return StepReport(
        ascent.losses,
        perturbed_losses,
        ascent.weights.values,
        ascent.norm / factor,
        int(ascent.weights.floored),
        ascent.fallbacks + fallbacks,
        overflow,
    )


def ascended(
    batches: Batches,
    space: WeightSpace,
    probed: Sequence[Tensor] | Covered | None,
    estimator: Estimator,
    *,
    rho: float,
    eta: float,
    seed: int,
    loss_scale: float,
    alone: bool = False,
) -> Ascent:
    """Ascend with a random direction that covers what the passes reach.

    Args:
        batches: What shares the perturbation.
        space: The parameters that are perturbed.
        probed: As for :func:`delta_sam_step`.
        estimator: How the weights are estimated.
        rho: L2 norm of the random probe.
        eta: Floor under the slope of Eq. 5.
        seed: Seed of the random direction.
        loss_scale: Factor on the losses.
        alone: Whether the other workers have directions of their own.

    Returns:
        The ascent.
    """
    while True:
        covers = space.only(probed.among(space)) if isinstance(probed, Covered) else probed
        prepare = partial(
            in_full_precision,
            estimator,
            params=space if covers is None else covers,
            rho=rho,
            eta=eta,
            seed=seed,
        )
        ascent = ascend(
            batches,
            space,
            prepare,
            falls_back=estimator is not uniform,
            loss_scale=loss_scale,
            alone=alone,
        )
        if not (isinstance(probed, Covered) and probed.grow(ascent.reached)):
            return ascent
        del ascent
