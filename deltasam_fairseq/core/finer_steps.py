"""Steps whose sentences do not all share a perturbation: groups of them, and one for each.

Each perturbation is that of some sentences of an update, which are scored by passes over
their whole batch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.core.batches import Batches, LossesFunctions, checked_batches, factor_of
from deltasam_fairseq.core.checks import not_negative, one_of
from deltasam_fairseq.core.covered import Covered
from deltasam_fairseq.core.descent import descend, let_workers_add_up
from deltasam_fairseq.core.estimators import Estimator, uniform
from deltasam_fairseq.core.graph import gradients_added
from deltasam_fairseq.core.groups import dealt, numbered
from deltasam_fairseq.core.passes import Passes
from deltasam_fairseq.core.precision import wide
from deltasam_fairseq.core.steps import StepReport, ascended
from deltasam_fairseq.core.weight_space import WeightSpace

# The loss of one sentence of a batch, by its index.
LossOf = Callable[[int], Tensor]
# The losses of some sentences of a batch, by their rows.
LossesOf = Callable[[list[int]], Tensor]


def grouped_step(
    params: Sequence[Tensor],
    losses_function: LossesFunctions,
    groups: int,
    *,
    rho: float,
    seed: int,
    eta: float = 1.0,
    estimator: Estimator = uniform,
    probed: Sequence[Tensor] | Covered | None = None,
    losses_of: Sequence[LossesOf | None] | None = None,
    reduction: str = "mean",
    loss_scale: float | None = None,
) -> StepReport:
    """Deal the sentences out to groups at random, and take a step of each (m-sharpness).

    One group is SAM, or delta-SAM with an estimator; as many as there are sentences is Eq. 2.
    Each group is scored by passes over the whole batch, with the batch's dropout, unless
    ``losses_of`` scores it alone. Each worker has groups of its own sentences.

    Args:
        params: As for :func:`~deltasam_fairseq.core.steps.delta_sam_step`.
        losses_function: As for :func:`~deltasam_fairseq.core.steps.plain_step`.
        groups: How many groups of like size; one of each sentence if these are fewer.
        rho: L2 norm of each group's perturbation, at least 0.
        seed: Seed of the groups and of the random direction.
        eta: Floor under the slope of Eq. 5, nats.
        estimator: How the weights within a group are estimated; equal by default.
        probed: As for :func:`~deltasam_fairseq.core.steps.delta_sam_step`.
        losses_of: Of each batch, the losses of the sentences in some rows alone, shape
            ``(rows,)``. Their dropout is drawn group after group.
        reduction: ``mean`` or ``sum`` over all sentences, of the descent.
        loss_scale: As for :func:`~deltasam_fairseq.core.steps.plain_step`.

    Returns:
        The report; ``gradient_norm`` is the mean over groups.

    State:
        As for :func:`~deltasam_fairseq.core.steps.sam_step`; with ``losses_of``, random
        generators end where one pass of each group would leave them.

    Collectives:
        Under DistributedDataParallel a few numbers besides its own all-reduce.

    Cost:
        1 forward pass, and of each group 2 forward and 2 backward passes of each batch that it
        has sentences of: with ``losses_of`` of these alone.

    Source:
        Foret et al. 2020, section 4.1 (m-sharpness).
    """
    rho = not_negative(rho, "rho")
    one_of(reduction, "reduction", ("mean", "sum"))
    space = WeightSpace.of(params)
    batches, factor = checked_batches(space, losses_function), factor_of(loss_scale)
    each_alone = losses_of or [None] * len(batches)
    found: dict[str, list[Tensor]] = {"rows": [], "at": [], "there": [], "weights": []}
    norms, floored, fallbacks = [], 0, 0
    with batches.restored():
        counts = _counted(batches)
        (everyone,) = batches.everywhere(sum(counts))
        batches.rewind()
        numbers = numbered(counts)
        dealt_out = dealt(numbers, groups, seed)
        with gradients_added(space):
            for group in dealt_out:
                parts = zip(batches, group, each_alone, strict=True)
                some = Batches.of(space, [partial(_only, *part) for part in parts if part[1]])
                ascent = ascended(
                    some,
                    space,
                    probed,
                    estimator,
                    rho=rho,
                    eta=eta,
                    seed=seed,
                    loss_scale=factor,
                    alone=True,
                )
                # DistributedDataParallel reduces all groups' gradients with those of the last.
                is_last = group is dealt_out[-1]
                with nullcontext() if is_last else some.local():
                    perturbed_losses, extra = descend(
                        space,
                        ascent.direction,
                        ascent.norm,
                        some,
                        ascent.losses,
                        rho=rho,
                        reduction=reduction,
                        sentences=everyone,
                        loss_scale=factor,
                        alone=not is_last,  # then they take it again together, or not at all
                    )
                places = [
                    own[row] for own, rows in zip(numbers, group, strict=True) for row in rows
                ]
                seen = (
                    torch.tensor(places, device=perturbed_losses.device),
                    ascent.losses,
                    perturbed_losses,
                    ascent.weights.values,
                )
                for name, tensor in zip(found, seen, strict=True):
                    found[name].append(tensor)
                norms.append(ascent.norm / factor)
                floored += int(ascent.weights.floored)
                fallbacks += ascent.fallbacks + extra
    overflow = _any_overflow(batches, norms, loss_scale)
    order = torch.cat(found["rows"]).argsort()
    at, moved, weights = (torch.cat(found[name])[order] for name in ("at", "there", "weights"))
    return StepReport(
        at,
        moved,
        weights,
        sum(norms) / len(norms),
        floored,
        fallbacks,
        overflow,
    )


def rows_alone(
    closures: Sequence[Callable[..., Tensor]], parameter: str
) -> list[Callable[[Any], Tensor] | None]:
    """Return of each closure how it scores some sentences alone.

    Args:
        closures: One forward pass of each batch.
        parameter: The parameter that says which sentences.

    Returns:
        A function of its value, ``None`` where a closure has no such parameter.
    """

    def alone(closure: Callable[..., Tensor]) -> Callable[[Any], Tensor] | None:
        if parameter not in inspect.signature(closure).parameters:
            return None
        return lambda value: closure(**{parameter: value})

    return [alone(closure) for closure in closures]


def _any_overflow(batches: Batches, norms: Sequence[float], loss_scale: float | None) -> bool:
    if loss_scale is None:
        return False
    return batches.everywhere(sum(not math.isfinite(norm) for norm in norms)) != [0]


def _only(whole: Passes, rows: list[int], alone: LossesOf | None) -> Passes:
    """Return passes of some sentences of a batch."""
    if alone is not None:
        return Passes(whole.params, lambda: alone(rows), like=whole)
    score = whole.losses_function
    whole.rewind()
    return Passes(whole.params, lambda: score()[rows], like=whole)


def _counted(batches: Batches) -> list[int]:
    """Count the sentences of each batch, in passes at w."""
    counts = []
    for passes in batches:
        with passes.local(), torch.no_grad():
            counts.append(passes().numel())
        passes.leave()
        torch.clear_autocast_cache()  # its casts were made without a graph
    return counts


def per_instance_step(
    params: Sequence[Tensor],
    losses_function: LossesFunctions,
    *,
    rho: float,
    loss_of: LossOf | Sequence[LossOf | None] | None = None,
    reduction: str = "mean",
    loss_scale: float | None = None,
) -> StepReport:
    """Give every sentence its own perturbation, one sentence at a time (Eq. 2).

    The obviously correct loop. Each sentence is scored by a pass over the whole
    batch, with the batch's dropout, unless ``loss_of`` scores one alone.

    Args:
        params: The trainable parameters, each once, or their
            :class:`~deltasam_fairseq.core.weight_space.WeightSpace`.
        losses_function: As for :func:`~deltasam_fairseq.core.steps.plain_step`.
        rho: L2 norm of each sentence's perturbation, at least 0.
        loss_of: Loss of sentence ``i`` alone, a tensor of one element, or such a
            function of each batch. Its dropout is drawn sentence after sentence.
        reduction: ``mean`` or ``sum`` over sentences, of the descent.
        loss_scale: As for :func:`~deltasam_fairseq.core.steps.plain_step`.

    Returns:
        The report; ``gradient_norm`` is the mean over sentences.

    State:
        As for :func:`~deltasam_fairseq.core.steps.sam_step`; with ``loss_of``, random
        generators end where one pass over each sentence would leave them.

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
    batches, factor = checked_batches(space, losses_function), factor_of(loss_scale)
    each_alone = list(loss_of) if isinstance(loss_of, Sequence) else [loss_of] * len(batches)
    at, perturbed_losses, norms, fallbacks = [], [], [], 0
    with batches.restored():
        counts = _counted(batches)
        (everyone,) = batches.everywhere(sum(counts))
        batches.rewind()
        with batches.local(), gradients_added(space):
            for whole, alone, count in zip(batches, each_alone, counts, strict=True):
                for index in range(count):
                    one = Batches.of(space, [partial(_one_of, whole, index, alone)])
                    (passes,) = one
                    with one.local():
                        losses = passes()
                        direction, norm = space.steepest(passes.ascend(wide(losses) * factor))
                        at.append(losses.detach())
                        moved, extra = descend(
                            space,
                            direction,
                            norm,
                            one,
                            at[-1],
                            rho=rho,
                            reduction=reduction,
                            sentences=everyone,
                            loss_scale=factor,
                            alone=True,
                        )
                    perturbed_losses.append(moved)
                    norms.append(norm / factor)
                    fallbacks += extra
    overflow = _any_overflow(batches, norms, loss_scale)
    if batches.group is not None:
        let_workers_add_up(whole)
    losses = torch.stack(at)
    return StepReport(
        losses,
        torch.stack(perturbed_losses),
        torch.ones_like(losses),
        gradient_norm=sum(norms) / len(norms),
        floored=0,
        fallbacks=fallbacks,
        overflow=overflow,
    )


def _one_of(whole: Passes, index: int, alone: LossOf | None) -> Passes:
    """Return passes of one sentence, of a scalar loss."""
    if alone is not None:
        return Passes(whole.params, lambda: alone(index).reshape(()), like=whole)
    score = whole.losses_function
    whole.rewind()
    return Passes(whole.params, lambda: score()[index], like=whole)
