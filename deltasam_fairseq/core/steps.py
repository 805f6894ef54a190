"""One sharpness-aware step on one batch, for a plain PyTorch loop.

Each function leaves the descent gradient in ``.grad``, added to what was
there, and the inner optimizer does the rest. The fairseq plugin builds its
step from the same pieces (:mod:`~deltasam_fairseq.core.estimators`,
:mod:`~deltasam_fairseq.core.perturb`), because fairseq's task runs the passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from deltasam_fairseq.core.ascent import Ascent, ascend, in_full_precision
from deltasam_fairseq.core.checks import not_negative, one_of
from deltasam_fairseq.core.covered import Covered
from deltasam_fairseq.core.descent import descend, everywhere, let_workers_add_up, reduced
from deltasam_fairseq.core.estimators import (
    Estimator,
    LossesFunction,
    finite_difference,
    uniform,
)
from deltasam_fairseq.core.graph import gradients_added
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
    one_of(reduction, "reduction", ("mean", "sum"))
    passes = Passes(params, lambda: _checked(losses_function()))
    losses = passes()
    everyone = everywhere(losses.numel(), passes.group, losses.device)
    torch.autograd.backward(reduced(reduction, passes.group, everyone)(losses))
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
            :class:`~deltasam_fairseq.core.weight_space.WeightSpace`.
        losses_function: One forward pass of the batch, shape ``(N,)``, nats.
        rho: L2 norm of the perturbation, at least 0.
        reduction: ``mean`` or ``sum`` over sentences, of the descent.

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
    )


def delta_sam_step(
    params: Sequence[Tensor],
    losses_function: LossesFunction,
    *,
    rho: float,
    eta: float,
    seed: int,
    estimator: Estimator = finite_difference,
    probed: Sequence[Tensor] | Covered | None = None,
    reduction: str = "mean",
) -> StepReport:
    """Take one delta-SAM step: weigh, ascend on the weighted batch, descend unweighted.

    Args:
        params: The trainable parameters, each once, or their
            :class:`~deltasam_fairseq.core.weight_space.WeightSpace`.
        losses_function: One forward pass of the batch, shape ``(N,)``, nats.
        rho: L2 norm of the perturbation and of the random probe, at least 0.
        eta: Floor under the slope of Eq. 5, nats, greater than 0.
        seed: Seed of the random direction.
        estimator: How the weights are estimated; Eq. 5 by default.
        probed: The parameters that the random direction covers; those that
            receive a gradient. All of ``params`` when left out. A
            :class:`~deltasam_fairseq.core.covered.Covered` grows by what this
            batch is the first to reach.
        reduction: ``mean`` or ``sum`` over sentences, of the descent.

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
    passes = Passes(space, lambda: _checked(losses_function()))
    with passes.restored():
        with passes.local():
            ascent = _ascended(passes, space, probed, estimator, rho=rho, eta=eta, seed=seed)
        perturbed_losses, fallbacks = descend(
            space,
            ascent.direction,
            ascent.norm,
            passes,
            ascent.losses,
            rho=rho,
            reduce=reduced(reduction, passes.group, ascent.sentences),
            group=passes.group,
        )
    return StepReport(
        ascent.losses,
        perturbed_losses,
        ascent.weights.values,
        ascent.norm,
        int(ascent.weights.floored),
        ascent.fallbacks + fallbacks,
    )


def grouped_step(
    params: Sequence[Tensor],
    losses_function: LossesFunction,
    groups: int,
    *,
    rho: float,
    seed: int,
    eta: float = 1.0,
    estimator: Estimator = uniform,
    probed: Sequence[Tensor] | Covered | None = None,
    reduction: str = "mean",
) -> StepReport:
    """Deal the sentences out to groups at random, and take a step of each (m-sharpness).

    One group is SAM, or delta-SAM with an estimator; as many as there are sentences is Eq. 2.
    Each group is scored by passes over the whole batch, with the batch's dropout.

    Args:
        params: As for :func:`delta_sam_step`.
        losses_function: One forward pass of the batch, shape ``(N,)``, nats.
        groups: How many groups of like size; one of each sentence if these are fewer.
        rho: L2 norm of each group's perturbation, at least 0.
        seed: Seed of the groups and of the random direction.
        eta: Floor under the slope of Eq. 5, nats.
        estimator: How the weights within a group are estimated; equal by default.
        probed: As for :func:`delta_sam_step`.
        reduction: ``mean`` or ``sum`` over all sentences, of the descent.

    Returns:
        The report; ``gradient_norm`` is the mean over groups.

    Raises:
        ValueError: Under DistributedDataParallel, whose workers would have to agree on groups.

    State:
        As for :func:`sam_step`.

    Cost:
        1 forward pass, and of each group 2 forward and 2 backward passes of the batch. (The
        fairseq plugin splits the batch, so that all groups together cost what one does.)

    Source:
        Foret et al. 2020, section 4.1 (m-sharpness).
    """
    rho = not_negative(rho, "rho")
    one_of(reduction, "reduction", ("mean", "sum"))
    space = WeightSpace.of(params)
    whole = Passes(space, lambda: _checked(losses_function()))
    found: dict[str, list[Tensor]] = {"rows": [], "at": [], "there": [], "weights": []}
    norms, floored, fallbacks = [], 0, 0
    with whole.restored(), whole.local():
        with torch.no_grad():
            count = whole().numel()
        if whole.group is not None:
            raise ValueError(
                "groups are for one process: under DistributedDataParallel the workers would have "
                "to share them; use groups=1, or the fairseq plugin's --sam-groups"
            )
        whole.leave()
        torch.clear_autocast_cache()  # its casts were made without a graph
        draw = torch.Generator().manual_seed(seed)
        dealt = torch.randperm(count, generator=draw).tensor_split(min(groups, count))
        share = 1.0 if reduction == "sum" else 1.0 / count
        with gradients_added(space):
            for rows in dealt:
                whole.rewind()
                score = partial(_some_of, losses_function, rows)
                one = Passes(space, score, like=whole)
                with one.local():
                    ascent = _ascended(one, space, probed, estimator, rho=rho, eta=eta, seed=seed)
                    perturbed_losses, extra = descend(
                        space,
                        ascent.direction,
                        ascent.norm,
                        one,
                        ascent.losses,
                        rho=rho,
                        reduce=lambda losses: losses.sum() * share,
                    )
                parts = (
                    rows.to(perturbed_losses.device),
                    ascent.losses,
                    perturbed_losses,
                    ascent.weights.values,
                )
                for name, part in zip(found, parts, strict=True):
                    found[name].append(part)
                norms.append(ascent.norm)
                floored += int(ascent.weights.floored)
                fallbacks += ascent.fallbacks + extra
    order = torch.cat(found["rows"]).argsort()
    at, moved, weights = (torch.cat(found[name])[order] for name in ("at", "there", "weights"))
    return StepReport(at, moved, weights, sum(norms) / len(norms), floored, fallbacks)


def _some_of(losses_function: LossesFunction, rows: Tensor) -> Tensor:
    losses = _checked(losses_function())
    return losses[rows.to(losses.device)]


def _ascended(
    passes: Passes,
    space: WeightSpace,
    probed: Sequence[Tensor] | Covered | None,
    estimator: Estimator,
    *,
    rho: float,
    eta: float,
    seed: int,
) -> Ascent:
    """Ascend with a random direction that covers what the passes reach."""
    while True:
        covers = space.only(probed.among(space)) if isinstance(probed, Covered) else probed
        weigh = in_full_precision(
            estimator,
            passes,
            space if covers is None else covers,
            rho=rho,
            eta=eta,
            seed=seed,
        )
        ascent = ascend(passes, space, weigh, falls_back=estimator is not uniform)
        if not (isinstance(probed, Covered) and probed.grow(ascent.reached)):
            return ascent
        del ascent


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
            :class:`~deltasam_fairseq.core.weight_space.WeightSpace`.
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

    Collectives:
        Under DistributedDataParallel one all-reduce of the number of sentences; its
        own reduction takes one more pass of the batch.

    Cost:
        2N + 1 forward and 2N backward passes, one copy of the parameters.

    Source:
        Zhou et al. 2022, Eq. 2, section 5.5.
    """
    rho = not_negative(rho, "rho")
    one_of(reduction, "reduction", ("mean", "sum"))
    space = WeightSpace.of(params)
    whole = Passes(space, lambda: _checked(losses_function()))
    at, perturbed_losses, norms, fallbacks = [], [], [], 0
    with whole.restored(), whole.local():
        with torch.no_grad():
            count = whole().numel()
        whole.leave()
        torch.clear_autocast_cache()  # its casts were made without a graph
        whole.rewind()
        everyone = everywhere(count, whole.group, space[0].device)
        reduce = reduced(reduction, whole.group, everyone, here=count)
        with gradients_added(space):
            for index in range(count):
                one = whole
                if loss_of is not None:
                    one = Passes(space, partial(loss_of, index), like=whole)

                def score(one: Passes = one, index: int = index) -> Tensor:
                    losses = one()
                    return losses[index] if loss_of is None else losses.reshape(())

                with one.local():
                    loss = score()
                    direction, norm = space.steepest(one.ascend(loss))
                    at.append(loss.detach())
                    moved, extra = descend(
                        space, direction, norm, score, at[-1], rho=rho, reduce=reduce
                    )
                perturbed_losses.append(moved)
                norms.append(norm)
                fallbacks += extra
    if whole.group is not None:
        let_workers_add_up(whole)
    losses = torch.stack(at)
    return StepReport(
        losses,
        torch.stack(perturbed_losses),
        torch.ones_like(losses),
        gradient_norm=sum(norms) / count,
        floored=0,
        fallbacks=fallbacks,
    )


def _checked(losses: Tensor) -> Tensor:
    if losses.dim() != 1 or not losses.numel():
        raise ValueError(
            "the losses function must return one loss per sentence, a vector of shape (N,) "
            f"with N > 0; got shape {tuple(losses.shape)} (call it with reduction='none')"
        )
    return losses
