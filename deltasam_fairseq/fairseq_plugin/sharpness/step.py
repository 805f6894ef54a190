"""SAM and delta-SAM as steps that are made of steps.

fairseq's ``Trainer.train_step`` runs as it is: it clears gradients, calls ``task.train_step``
for each micro-batch, reduces, clips and updates. For its duration the task's ``train_step`` is
one of the objects below, so that what the trainer takes for the gradient at w is the
gradient at w + eps. Each calls the step that it was made of several times: at w (and at
w + r and w - r, by the stand-in for the criterion) for the ascent, and at w + eps for the
descent, with the dropout of the first pass.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from deltasam_fairseq.core.estimators import OF_NORMS
from deltasam_fairseq.core.graph import gradients_aside
from deltasam_fairseq.core.noise import seed_for
from deltasam_fairseq.core.pass_state import Buffers, PassState
from deltasam_fairseq.core.perturb import Borrowed, Realised
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.core.workers import add_up
from deltasam_fairseq.fairseq_plugin.passes import Result, Step, is_plain, standing_in
from deltasam_fairseq.fairseq_plugin.sharpness.ascent import (
    Ascent,
    OverflowingCriterion,
    Workers,
    ascend,
)
from deltasam_fairseq.fairseq_plugin.sharpness.by_norms import WeighedByNorms
from deltasam_fairseq.fairseq_plugin.sharpness.meters import (
    AscentSums,
    Logging,
    added,
    combined,
    reduce_and_log,
    total,
)
from deltasam_fairseq.fairseq_plugin.sharpness.parallel import (
    is_out_of_memory,
    synchronise,
    without_sync,
)
from deltasam_fairseq.fairseq_plugin.sharpness.run import Run
from deltasam_fairseq.fairseq_plugin.sharpness.samples import (
    Sample,
    containers_copied,
    ids,
    split,
)
from deltasam_fairseq.fairseq_plugin.sharpness.weighing import Tally, WeighingCriterion


class SharpStep(ABC):
    """A step at perturbed weights, for the micro-batches of one update.

    With the other arguments bound it is a
    :data:`~deltasam_fairseq.fairseq_plugin.passes.StepMaker`.

    Args:
        step: Runs a pass at the weights as they are: fairseq's own step or one that is
            made of it.
        trainer: fairseq's trainer.
        samples: The micro-batches of this worker's update.
        run: The run's settings and weights.
    """

    def __init__(self, step: Step, trainer: Any, samples: Sequence[Any], run: Run) -> None:
        self.step = step
        self.trainer = trainer
        self.samples = list(samples)
        self.run = run
        self.settings = run.settings
        self.update = trainer.get_num_updates()
        self.position = 0
        self._left: Buffers | None = None
        self._task_reduce: Callable[..., None] = trainer.task.reduce_metrics

    @abstractmethod
    def __call__(  # noqa: PLR0917  (as the trainer calls it)
        self,
        sample: Sample,
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        **extra: Any,
    ) -> Result:
        """Run one micro-batch; the gradient at w + eps is added to ``.grad``.

        Args:
            sample: The micro-batch.
            model: The model.
            criterion: The criterion.
            optimizer: The optimizer.
            update_num: Number of updates before this one.
            ignore_grad: Whether it only keeps this worker in step.
            **extra: What else the trainer gives.

        Returns:
            Loss, sample size and combined logging output.
        """

    @contextmanager
    def in_place(self) -> Generator[None, None, None]:
        """Stand in for the task's methods during a block."""
        with ExitStack() as stack:
            stack.callback(self.restore)
            stack.callback(self.run.norms.taken)
            task = self.trainer.task
            stack.enter_context(
                standing_in(task, train_step=self, reduce_metrics=self.reduce_metrics)
            )
            yield

    def restart(self) -> None:
        """Begin the update once more."""
        self.restore()
        self.run.norms.taken()
        self.position = 0

    @property
    def is_over(self) -> bool:
        """Whether every micro-batch had its turn: the trainer looks for what made a NaN."""
        return self.position >= len(self.samples)

    @property
    def seed(self) -> int:
        """Seed of this update's groups and random directions, the same on every worker."""
        return seed_for(self.trainer.cfg.common.seed, self.update)

    def with_norms(self, sums: AscentSums) -> AscentSums:
        """Add the norms of the update's sentences to the sums of its last micro-batch."""
        last = self.position == len(self.samples) - 1
        return sums.plus(self.run.norms.taken()) if last else sums

    @contextmanager
    def turn(self, model: Any, criterion: Any) -> Generator[None, None, None]:
        """Count a micro-batch, and give back what is held if its block fails for good."""
        last = self.position == len(self.samples) - 1
        if last:
            synchronise(model, criterion)
        try:
            yield
        except BaseException as error:
            # After an out-of-memory in one worker of several, fairseq goes on with
            # the other micro-batches, which belong to the same perturbation.
            if last or not is_out_of_memory(error):
                self.restore()
            raise
        finally:
            self.position += 1

    def restore(self) -> None:
        """Put back what this update still holds: buffers go where the passes at w left them."""
        if self._left is not None:
            self._left.replay()
            self._left = None

    def weighing(self, *, seed: int, sole: bool) -> Callable[[Tally], WeighingCriterion] | None:
        """Choose what weighs the sentences of an ascent.

        Args:
            seed: Seed of the random direction.
            sole: Whether one micro-batch has a perturbation of its own.

        Returns:
            Makes the stand-in for the criterion; ``None`` but for delta-SAM.
        """
        if self.settings.method != "delta_sam":
            return None
        # A step that is not fairseq's own may call the criterion several times.
        sole = sole and is_plain(self.step)
        return partial(
            WeighingCriterion, self.trainer.get_criterion(), self.run, seed=seed, sole=sole
        )

    def climbing(self, sample: Sample, seed: int) -> Sample:
        """Choose the sentences on which a perturbation is found.

        Args:
            sample: Those that share it, or a micro-batch of them.
            seed: Of the choice.

        Returns:
            The sample, or with ``--sam-ascent-fraction`` a part of it.
        """
        if self.settings.ascent_fraction == 1:
            return sample
        sentences = len(ids(sample))
        draw = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(sentences, generator=draw)
        chosen = chosen[: math.ceil(round(self.settings.ascent_fraction * sentences, 6))]
        padding = self.trainer.get_criterion().padding_idx
        return split(sample, [sorted(chosen.tolist())], padding)[0]

    def check_pieces(
        self, sample: Sample, pieces: Sequence[Sample], given: Mapping[str, Any]
    ) -> None:
        """Refuse pieces of a micro-batch that do not add up to it.

        Args:
            sample: The micro-batch.
            pieces: Its sentences, or groups of them.
            given: What else the step is called with.
        """

        def step(batch: Sample, **changed: Any) -> Result:
            batch = containers_copied(batch)
            return self.step(sample=batch, ignore_grad=False, **{**given, **changed})

        self.run.adding_up.check_pieces(
            step,
            self.trainer.get_model(),
            self.trainer.get_criterion(),
            sample,
            pieces,
            groups=self.settings.groups > 1,
        )

    def leave_buffers(
        self,
        samples: Sequence[Sample],
        start: PassState,
        criterion: Any,
        given: Mapping[str, Any],
    ) -> None:
        """Leave the buffers as passes of whole micro-batches do, which are run for that.

        Args:
            samples: The micro-batches.
            start: What the first of the passes starts from.
            criterion: The criterion.
            given: What else the step is called with.
        """
        weights = self.run.weights
        end = RandomState.capture(weights.space)
        start.replay()
        with (
            gradients_aside([*weights.space, *weights.others()]),
            without_sync(given["model"], criterion),
        ):
            for sample in samples:
                self.step(
                    sample=containers_copied(sample), criterion=criterion, ignore_grad=True, **given
                )
        end.replay()

    def stepping(self, tally: Tally) -> Step:
        """Choose the step of the weighted passes of an ascent.

        Args:
            tally: Where to count.

        Returns:
            The step, or one of norms alone.
        """
        if self.settings.estimator in OF_NORMS:
            return WeighedByNorms(self.step, self.trainer, self.run, tally)
        return self.step

    def move(self, ascent: Ascent, *, measure: bool) -> Borrowed:
        """Move the weights along an ascent.

        Args:
            ascent: The ascent; its direction is consumed.
            measure: Whether to look at the rounding, if it is this update's turn.

        Returns:
            The record that puts them back.
        """
        self._left = ascent.left
        measure = measure and self.run.measures(self.update)
        space = self.run.weights.space
        borrowed = space.moved(ascent.direction, ascent.scale, measure=measure)
        self.run.note(borrowed.realised)
        return borrowed

    def descend(
        self,
        ascent: Ascent,
        sample: Sample,
        criterion: Any,
        given: Mapping[str, Any],
        *,
        ignore_grad: bool = False,
    ) -> Result:
        """Run a pass at the moved weights.

        Args:
            ascent: What moved them; after an overflow the pass makes fairseq skip the update.
            sample: The micro-batch, or a part of it.
            criterion: The task's own criterion.
            given: What else the step is called with.
            ignore_grad: Whether it only keeps this worker in step.

        Returns:
            As the step.
        """
        # With SAM the norms are those of the ascent, at w; delta-SAM weighs the sentences there.
        shown = self.settings.method == "delta_sam" and not ignore_grad and not ascent.overflow
        with self.run.norms.measuring(self.step, sample if shown else {}, given):
            return self.step(
                sample=containers_copied(sample),
                criterion=OverflowingCriterion(criterion) if ascent.overflow else criterion,
                ignore_grad=ignore_grad,
                **given,
            )

    def reduce_metrics(self, logging_outputs: list[Logging], criterion: Any) -> None:
        """Log what the task logs, at w, and this plugin's meters beside it.

        Args:
            logging_outputs: Of this update's micro-batches, on all workers.
            criterion: The criterion.
        """
        if total(logging_outputs, "unshared"):
            # Every worker sees the same outputs, so all of them join in.
            covered, workers = self.run.covered, self.trainer.data_parallel_world_size
            marks = torch.tensor(covered.marks(), device=self.run.weights.space[0].device)
            add_up([marks], [], self.trainer.data_parallel_process_group)
            covered.settle(marks.tolist(), workers)
        weighs = self.settings.method == "delta_sam"
        reduce_and_log(
            logging_outputs,
            criterion,
            self._task_reduce,
            weighs=weighs,
            share=self.settings.ascent_fraction < 1,
        )


class UpdateScope(SharpStep):
    """One perturbation for all micro-batches of all workers.

    The first micro-batch's call runs the whole ascent, whatever its share of
    it; the last one's puts the weights back, before gradients are reduced.
    """

    _borrowed: Borrowed | None = None
    _realised: Realised | None = None
    _ascent: Ascent

    def __call__(  # noqa: D102, PLR0917
        self,
        sample: Sample,
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        **extra: Any,
    ) -> Result:
        given = {"model": model, "optimizer": optimizer, "update_num": update_num, **extra}
        if self.is_over:
            return self.step(sample=sample, criterion=criterion, ignore_grad=ignore_grad, **given)
        with self.turn(model, criterion):
            first, last = self.position == 0, self.position == len(self.samples) - 1
            if first:
                others = [self.trainer._prepare_sample(s) for s in self.samples[1:]]
                self._ascent = ascend(
                    self.step,
                    [
                        (batch if ignored else self.climbing(batch, self.seed + place), ignored)
                        for place, (batch, ignored) in enumerate([(sample, ignore_grad), *others])
                    ],
                    self.run,
                    criterion,
                    self.weighing(seed=self.seed, sole=last and self.workers is None),
                    workers=self.workers,
                    given=given,
                    stepping=self.stepping,
                )
                self._borrowed = self.move(self._ascent, measure=True)
                self._realised = self._borrowed.realised
            state, at_weights = self._ascent.passes[self.position]
            state.replay()
            loss, sample_size, moved = self.descend(
                self._ascent, sample, criterion, given, ignore_grad=ignore_grad
            )
            if last:
                self.restore()
            sums = self._ascent.sums.with_realised(self._realised) if first else AscentSums()
            output = combined(at_weights or moved, moved, self.with_norms(sums))
            return loss, sample_size, output

    def restore(self) -> None:  # noqa: D102
        if self._borrowed is not None:
            self._borrowed.restore()
        super().restore()

    @property
    def workers(self) -> Workers | None:
        """Those who share the perturbation with this worker, if it is not alone."""
        count = self.trainer.data_parallel_world_size
        return Workers(self.trainer.data_parallel_process_group, count) if count > 1 else None


class MicroScope(SharpStep):
    """One perturbation for each micro-batch of each worker, or for each piece of it."""

    def __call__(  # noqa: D102, PLR0917
        self,
        sample: Sample,
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        **extra: Any,
    ) -> Result:
        given = {"model": model, "optimizer": optimizer, "update_num": update_num, **extra}
        if self.is_over:
            return self.step(sample=sample, criterion=criterion, ignore_grad=ignore_grad, **given)
        with self.turn(model, criterion):
            if ignore_grad:
                loss, size, output = self.step(
                    sample=containers_copied(sample),
                    criterion=criterion,
                    ignore_grad=True,
                    **given,
                )
                return loss, size, combined(output, output, self.with_norms(AscentSums()))
            done = self.at_once(sample, given)
            if done is not None:
                return done
            pieces = self.pieces(sample, given)
            start = self.run.weights.state()
            outputs, moved_outputs, sums, losses, sizes = [], [], AscentSums(), [], []
            for number, piece in enumerate(pieces):
                start.buffers.replay()
                ascent = ascend(
                    self.step,
                    [(self.climbing(piece, self.seed + number), False)],
                    self.run,
                    criterion,
                    self.weighing(seed=self.seed, sole=True),
                    workers=None,
                    given=given,
                    stepping=self.stepping,
                )
                state, at_weights = ascent.passes[0]
                with ExitStack() as stack:
                    borrowed = self.move(ascent, measure=self.position == 0 and number == 0)
                    stack.callback(borrowed.restore)
                    if number < len(pieces) - 1:
                        stack.enter_context(without_sync(model, criterion))
                    state.replay()
                    loss, size, moved = self.descend(ascent, piece, criterion, given)
                self.restore()
                outputs.append(at_weights or moved)
                moved_outputs.append(moved)
                sums = sums.plus(ascent.sums.with_realised(borrowed.realised))
                losses.append(loss)
                sizes.append(size)
            if len(pieces) > 1 and start.buffers.changed():
                self.leave_buffers([sample], start, criterion, given)
            if self.trainer.data_parallel_world_size > 1:
                sums = sums._replace(unshared=float(self.run.covered.unshared))
            sums = self.with_norms(sums)
            if len(pieces) == 1:
                return losses[0], sizes[0], combined(outputs[0], moved_outputs[0], sums)
            return sum(losses), sum(sizes), combined(added(outputs), added(moved_outputs), sums)

    def at_once(self, sample: Sample, given: Mapping[str, Any]) -> Result | None:
        """Run a micro-batch in another way than piece by piece.

        Args:
            sample: The micro-batch.
            given: What else the step is called with.

        Returns:
            As the step; ``None`` where there is no other way.
        """
        del sample, given
        return None

    def pieces(self, sample: Sample, given: Mapping[str, Any]) -> list[Sample]:
        """Divide a micro-batch into parts with a perturbation each.

        Args:
            sample: The micro-batch.
            given: What else the step is called with.

        Returns:
            The parts; here, the whole.
        """
        del given
        return [sample]

    @property
    def seed(self) -> int:
        """Seed of this micro-batch's random direction."""
        return seed_for(super().seed, self.position)
