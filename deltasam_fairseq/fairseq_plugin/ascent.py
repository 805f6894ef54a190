"""The ascent: from some micro-batches to one direction in weight space.

fairseq's own ``task.train_step`` runs the passes, so every task works that
calls its criterion as ``criterion(model, sample)``, once or several times;
for delta-SAM a stand-in for the criterion weighs the sentences of each call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deltasam_fairseq.core.graph import gradients_aside, take_gradients
from deltasam_fairseq.core.pass_state import PassState
from deltasam_fairseq.fairseq_plugin.covered import RunCovered
from deltasam_fairseq.fairseq_plugin.meters import AscentSums
from deltasam_fairseq.fairseq_plugin.model_weights import ModelWeights
from deltasam_fairseq.fairseq_plugin.parallel import memory_needed
from deltasam_fairseq.fairseq_plugin.stand_ins import WeighingCriterion
from deltasam_fairseq.fairseq_plugin.tally import Tally


class Pass(NamedTuple):
    """One micro-batch's pass at w.

    Args:
        state: Generators and buffers that its other passes start from.
        logging_output: The criterion's, or ``None`` if no pass was run.
    """

    state: PassState
    logging_output: dict[str, Any] | None


class Ascent(NamedTuple):
    """Where to move, and what was seen on the way.

    Args:
        direction: One tensor per parameter, or ``None``.
        scale: Factor that gives the direction the norm rho.
        passes: One per micro-batch.
        sums: What is logged.
        overflow: Whether the loss scale was too large for the gradient, so that
            the update is to be skipped.
    """

    direction: list[Tensor | None]
    scale: float
    passes: list[Pass]
    sums: AscentSums
    overflow: bool = False


def ascend(
    run_passes: Callable[[Any, Tally], list[Pass]],
    weights: ModelWeights,
    weighing: Callable[[Tally], WeighingCriterion] | None,
    criterion: Any,
    *,
    covered: RunCovered,
    rho: float,
    add_up: Callable[..., list[float]] | None,
    workers: int = 1,
) -> Ascent:
    """Find the direction of one perturbation.

    Passes that are the first to reach a parameter are run once more, with a
    random direction that covers it. Weights that leave no usable gradient are
    replaced by uniform ones (SAM); a gradient that is zero or not finite even
    then moves nothing. Both count as a fallback. A gradient that is not finite
    for finite weights, under a loss scale, is an overflow. With several workers
    all of them decide alike, because they see the same sums.

    Args:
        run_passes: Runs forward and backward passes of the micro-batches with
            the criterion that it is given, and counts into the tally.
        weights: The run's weights; the ``.grad`` of every parameter is left as it was.
        weighing: Makes the stand-in for the criterion; ``None`` for SAM.
        criterion: The task's own criterion.
        covered: What the random direction covers; it grows.
        rho: L2 norm of the perturbation.
        add_up: Sums gradients and numbers over workers; ``None`` for one alone.
        workers: How many workers share the perturbation.

    Returns:
        The ascent.
    """
    space = weights.space
    fallbacks = 0
    passes: list[Pass] = []
    attempts = ([weighing] if weighing else []) + [None]
    with gradients_aside([*space, *weights.others()]):
        while attempts:
            attempt = attempts[0]
            tally = Tally()
            stand_in = attempt(tally) if attempt else None
            seen = run_passes(stand_in or criterion, tally)
            passes = passes or seen
            gradients = take_gradients(space)
            reached = [p for p, g in zip(space, gradients, strict=True) if g is not None]
            if add_up is None:
                grown = attempt is not None and covered.grow(reached)
            else:
                # Sums of weights times gradients, brought to a mean weight of one
                # and divided by the number of workers, as DDP does: half
                # precision has room for that if it had for the shares.
                with memory_needed():
                    filled = [
                        torch.zeros_like(p) if g is None else g
                        for p, g in zip(space, gradients, strict=True)
                    ]
                    numbers = add_up(
                        filled,
                        [*tally.numbers(), *(covered.marks(reached) if attempt else ())],
                        factor=tally.scale,
                        divisor=lambda sums: Tally.of(sums).mean_weight * workers,
                    )
                tally, gradients = Tally.of(numbers), list(filled)
                grown = covered.settle(numbers[len(tally.numbers()) :], workers)
                del filled
            if grown:
                del gradients
                continue
            attempts.pop(0)
            direction, length = space.steepest_unread(gradients)
            norm, unusable = tally.read_with(length)
            unit = tally.scale if add_up is None else tally.mean_weight * workers
            fallbacks += unusable
            if math.isfinite(norm) and norm > 0:
                whole = norm * unit / tally.mean_weight / weights.loss_scale
                return Ascent(direction, rho / norm, passes, tally.sums(whole, fallbacks))
            fallbacks += 1
            if weights.is_scaled and not math.isfinite(norm) and math.isfinite(tally.weights):
                break
    overflow = weights.is_scaled and not math.isfinite(norm)
    nowhere: list[Tensor | None] = [None] * len(space)
    return Ascent(nowhere, 0.0, passes, tally.sums(norm, fallbacks), overflow)
