"""The ascent: from some micro-batches to one direction in weight space.

A step, fairseq's own or one that is made of it, runs the passes, so every task works that
calls its criterion as ``criterion(model, sample)``, once or several times; for delta-SAM a
stand-in for the criterion weighs the sentences of each call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from fairseq import utils
from torch import Tensor

from deltasam_fairseq.core.graph import gradients_aside, take_gradients
from deltasam_fairseq.core.pass_state import Buffers, PassState
from deltasam_fairseq.core.workers import add_up
from deltasam_fairseq.fairseq_plugin.one_side import ascending
from deltasam_fairseq.fairseq_plugin.passes import Step
from deltasam_fairseq.fairseq_plugin.sharpness.meters import AscentSums
from deltasam_fairseq.fairseq_plugin.sharpness.parallel import (
    is_out_of_memory,
    memory_needed,
    without_sync,
)
from deltasam_fairseq.fairseq_plugin.sharpness.run import Run
from deltasam_fairseq.fairseq_plugin.sharpness.samples import Sample, containers_copied
from deltasam_fairseq.fairseq_plugin.sharpness.weighing import Tally, WeighingCriterion

# A micro-batch with whether it only keeps a worker without data in step.
Batch = tuple[Sample, bool]


class Pass(NamedTuple):
    """One micro-batch's pass at w.

    Attributes:
        state: Generators and buffers that its other passes start from.
        logging_output: The criterion's, or ``None`` if no pass was run.
    """

    state: PassState
    logging_output: dict[str, Any] | None


class Ascent(NamedTuple):
    """Where to move the weights, and what the passes at w found.

    Attributes:
        direction: One tensor per parameter, or ``None``.
        scale: Factor that gives the direction the norm rho.
        passes: One per micro-batch.
        left: The buffers as the passes at w left them; ``None`` if they had no memory.
        sums: What is logged.
        overflow: Whether the loss scale was too large for the gradient, so that
            the update is to be skipped.
    """

    direction: list[Tensor | None]
    scale: float
    passes: list[Pass]
    left: Buffers | None
    sums: AscentSums
    overflow: bool = False


class Workers(NamedTuple):
    """The workers that share a perturbation.

    Attributes:
        group: Their process group, or ``None`` for the default one.
        number: How many there are, more than one.
    """

    group: Any
    number: int


def ascend(
    step: Step,
    batches: Sequence[Batch],
    run: Run,
    criterion: Any,
    weighing: Callable[[Tally], WeighingCriterion] | None,
    *,
    workers: Workers | None,
    given: Mapping[str, Any],
    stepping: Callable[[Tally], Step] | None = None,
) -> Ascent:
    """Find the direction of one perturbation.

    Passes that are the first to reach a parameter are run once more, with a
    random direction that covers it. Weights that leave no usable gradient are
    replaced by uniform ones (SAM); a gradient that is zero or not finite even
    then moves nothing. Both count as a fallback. A gradient that is not finite
    for finite weights, under a loss scale, is an overflow. With several workers
    all of them decide alike, because they see the same sums.

    Args:
        step: Runs a forward and backward pass.
        batches: The micro-batches that share the perturbation on this worker.
        run: The run's settings and weights; what the random direction covers grows. The
            ``.grad`` of every parameter, generators and buffers are left as they were.
        criterion: The task's own criterion.
        weighing: Makes the stand-in for the criterion; ``None`` for SAM.
        workers: The workers that share the perturbation; ``None`` for one alone.
        given: What else the step is called with.
        stepping: Makes the step of the weighted passes, where that is another one.

    Returns:
        The ascent.
    """
    weights, space = run.weights, run.weights.space
    fallbacks = 0
    passes: list[Pass] = []
    left: Buffers | None = None
    # First with the weights of Eq. 5, then, if these lead nowhere, with equal ones.
    attempts = ([weighing] if weighing else []) + [None]
    with (
        gradients_aside([*space, *weights.others()]),
        without_sync(given["model"], criterion),
        ascending(),
    ):
        while attempts:
            attempt, tally = attempts[0], Tally()
            stand_in = attempt(tally) if attempt else None
            run_pass = stepping(tally) if attempt and stepping else step
            start = weights.state()
            seen: list[Pass] = []
            # sum_i g_i grad l_i(w), the numerator of Eq. 7, adds up in ``.grad`` over the
            # micro-batches (g_i = 1 for SAM), in the tally's unit and with the loss scale.
            with _passes_at_w(start, run, seen, tally, batches, shared=workers is not None):
                for sample, ignored in batches:
                    state = weights.state() if seen else start
                    logging_output = None
                    if not ignored:
                        # A pass that weighs the sentences does not show their own norms.
                        shown = sample if run.settings.method == "sam" else {}
                        with run.norms.measuring(step, shown, given):
                            _, size, logging_output = run_pass(
                                sample=containers_copied(sample),
                                criterion=stand_in or criterion,
                                ignore_grad=False,
                                **given,
                            )
                        tally.sample_size += float(utils.item(size))
                        if stand_in is None:
                            sentences = logging_output.get("nsentences", 0)
                            tally.count_uniform(float(utils.item(sentences)))
                    seen.append(Pass(state, logging_output))
                left = start.buffers.now()
            passes = passes or seen
            gradients = take_gradients(space)
            reached = [p for p, g in zip(space, gradients, strict=True) if g is not None]
            if workers is None:
                grown = attempt is not None and run.covered.grow(reached)
            else:
                gradients, tally, grown = _over_workers(
                    gradients, tally, workers, run, reached if attempt else None
                )
            if grown:
                del gradients
                continue
            attempts.pop(0)
            # Eq. 7: eps = rho v / |v|, v the gradient of the weighted losses. What multiplies
            # v (unit, loss scale) cancels, and is taken out of the norm that is logged.
            direction, length = space.steepest_unread(gradients)
            norm, unusable = tally.read_with(length)
            unit = tally.scale if workers is None else tally.mean_weight * workers.number
            fallbacks += unusable
            if math.isfinite(norm) and norm > 0:
                whole = norm * unit / tally.mean_weight / weights.loss_scale
                sums = tally.sums(whole, fallbacks)
                return Ascent(direction, run.settings.rho / norm, passes, left, sums)
            fallbacks += 1
            if weights.is_scaled and not math.isfinite(norm) and math.isfinite(tally.weights):
                break
    overflow = weights.is_scaled and not math.isfinite(norm)
    nowhere: list[Tensor | None] = [None] * len(space)
    return Ascent(nowhere, 0.0, passes, left, tally.sums(norm, fallbacks), overflow)


@contextmanager
def _passes_at_w(
    start: PassState,
    run: Run,
    seen: list[Pass],
    tally: Tally,
    batches: Sequence[Batch],
    *,
    shared: bool,
) -> Generator[None, None, None]:
    """Put generators and buffers back after the passes, and outlive a lack of memory."""
    try:
        yield
    except RuntimeError as error:
        if not shared or not is_out_of_memory(error):
            raise
        # The other workers wait in the reduction: join it without a share,
        # and let the descent meet the same fate under the trainer's eyes.
        for param in run.weights.space:
            param.grad = None
        tally.clear()
        seen[:] = [Pass(start, None) for _ in batches]
    finally:
        start.replay()


def _over_workers(
    gradients: Sequence[Tensor | None],
    tally: Tally,
    workers: Workers,
    run: Run,
    reached: Sequence[Tensor] | None,
) -> tuple[list[Tensor | None], Tally, bool]:
    """Add gradients and counts up over the workers.

    Args:
        gradients: This worker's; consumed.
        tally: This worker's counts.
        workers: The workers.
        run: The run; what the random direction covers grows.
        reached: The parameters that received a gradient; ``None`` without a random direction.

    Returns:
        The gradients of the losses whose mean weight is one, divided by the number of
        workers; the counts of all workers; and whether a worker reached a new parameter.
    """
    # Divided by the number of workers, as DDP does: half precision has room for that
    # if it had for the shares.
    with memory_needed():
        filled = [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(run.weights.space, gradients, strict=True)
        ]
        numbers = add_up(
            filled,
            [*tally.numbers(), *(() if reached is None else run.covered.marks(reached))],
            workers.group,
            factor=tally.scale,
            divisor=lambda sums: Tally.of(sums).mean_weight * workers.number,
        )
    grown = run.covered.settle(numbers[len(tally.numbers()) :], workers.number)
    return list(filled), Tally.of(numbers), grown


class OverflowingCriterion:
    """Stands in for the criterion after an overflow in the ascent.

    The loss becomes infinite, so the gradient overflows on every worker that it
    is reduced over, and fairseq does what it does then: it lowers the loss scale
    and skips the update, everywhere alike.

    Args:
        criterion: The task's criterion.
    """

    def __init__(self, criterion: Any) -> None:
        self._criterion = criterion

    def __call__(self, model: Any, sample: Sample) -> tuple[Tensor, Any, dict[str, Any]]:
        """Run the pass with an infinite loss.

        Args:
            model: As for the criterion.
            sample: As for the criterion.

        Returns:
            As the criterion.
        """
        loss, sample_size, logging_output = self._criterion(model, sample)
        return loss * math.inf, sample_size, logging_output

    def __getattr__(self, name: str) -> Any:
        """Ask the criterion itself."""
        return getattr(self._criterion, name)
