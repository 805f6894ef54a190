"""One update of fairseq's trainer, with its ascent and its perturbed weights.

The trainer's own ``train_step`` runs as it is: it clears gradients, calls
``task.train_step`` for each micro-batch, reduces, clips and updates. For its
duration the task's ``train_step`` is one of the methods below, so that what
the trainer takes for the gradient at w is the gradient at w + eps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from fairseq import utils

from deltasam_fairseq.core.graph import gradients_aside
from deltasam_fairseq.core.noise import seed_for
from deltasam_fairseq.core.pass_state import Buffers, PassState
from deltasam_fairseq.core.perturb import Borrowed, Realised
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.core.workers import add_up
from deltasam_fairseq.fairseq_plugin.ascent import Ascent, Pass, ascend
from deltasam_fairseq.fairseq_plugin.compat import is_fairseqs_step
from deltasam_fairseq.fairseq_plugin.meters import (
    AscentSums,
    Logging,
    added,
    combined,
    reduce_and_log,
    total,
)
from deltasam_fairseq.fairseq_plugin.parallel import (
    is_out_of_memory,
    synchronise,
    without_sync,
)
from deltasam_fairseq.fairseq_plugin.run import Run
from deltasam_fairseq.fairseq_plugin.samples import Sample, containers_copied, split_by_sentence
from deltasam_fairseq.fairseq_plugin.stand_ins import OverflowingCriterion, WeighingCriterion
from deltasam_fairseq.fairseq_plugin.tally import Tally

Result = tuple[Any, Any, Logging]
# A micro-batch with whether it only keeps a worker without data in step.
Batch = tuple[Sample, bool]


class Update(ABC):
    """What the two scopes share.

    Args:
        trainer: fairseq's trainer.
        samples: The micro-batches of this worker's update.
        run: The run's settings and weights.
    """

    def __init__(self, trainer: Any, samples: Sequence[Any], run: Run) -> None:
        self.trainer = trainer
        self.samples = list(samples)
        self.run = run
        self.settings = run.settings
        self.space = run.weights.space
        self.update = trainer.get_num_updates()
        self.position = 0
        self._left: Buffers | None = None
        self._task_step: Callable[..., Result] = trainer.task.train_step
        self._task_reduce: Callable[..., None] = trainer.task.reduce_metrics
        around = getattr(self._task_step, "__self__", None)
        if isinstance(around, Update):
            # With --amp the trainer tries a batch again from inside its own step.
            self._task_step, self._task_reduce = around._task_step, around._task_reduce

    @contextmanager
    def in_place(self) -> Generator[None, None, None]:
        """Stand in for the task's methods during a block."""
        task = self.trainer.task
        with ExitStack() as stack:
            stack.callback(self.give_back)
            stack.enter_context(_replaced(task, "train_step", self._count_and_step))
            stack.enter_context(_replaced(task, "reduce_metrics", self._reduce))
            yield

    @abstractmethod
    def train_step(self, sample: Sample, model: Any, ignore_grad: bool, **kwargs: Any) -> Result:
        """Run one micro-batch; the gradient at w + eps is added to ``.grad``.

        Args:
            sample: The micro-batch.
            model: The model.
            ignore_grad: Whether it only keeps this worker in step.
            **kwargs: As the trainer gives them.

        Returns:
            Loss, sample size and combined logging output.
        """

    def give_back(self) -> None:
        """Put back what this update still holds: buffers go where the passes at w left them."""
        if self._left is not None:
            self._left.replay()
            self._left = None

    def task_step(self, sample: Sample, **kwargs: Any) -> Result:
        """Run the task's own step on a copy of the sample.

        Args:
            sample: The micro-batch; the task may change its copy.
            **kwargs: As the trainer gives them.

        Returns:
            What the task returns.
        """
        return self._task_step(sample=containers_copied(sample), **kwargs)

    def ascend(self, batches: Sequence[Batch], *, shared: bool, seed: int, **kwargs: Any) -> Ascent:
        """Find the perturbation of some micro-batches.

        Args:
            batches: The micro-batches that share it on this worker.
            shared: Whether other workers share it as well.
            seed: Seed of its random direction.
            **kwargs: As the trainer gives them.

        Returns:
            The ascent.
        """
        criterion = kwargs.pop("criterion")
        sole = len(batches) == 1 and not shared and is_fairseqs_step(self._task_step)

        def weighing(tally: Tally) -> WeighingCriterion:
            return WeighingCriterion(
                self.trainer.get_criterion(),
                self.settings,
                self.run.weights,
                self.run.covered,
                seed=seed,
                sole=sole,
                in_full=self.run.probes_in_full,
                tally=tally,
                adding_up=self.run.adding_up,
            )

        def passes(used: Any, tally: Tally) -> list[Pass]:
            return self._passes(batches, tally, shared=shared, criterion=used, **kwargs)

        group = self.trainer.data_parallel_process_group if shared else None
        with without_sync(kwargs["model"], criterion):
            return ascend(
                passes,
                self.run.weights,
                weighing if self.settings.method == "delta_sam" else None,
                criterion,
                covered=self.run.covered,
                rho=self.settings.rho,
                add_up=partial(add_up, group=group) if shared else None,
                workers=self.trainer.data_parallel_world_size if shared else 1,
            )

    def move(self, ascent: Ascent, *, measure: bool) -> Borrowed:
        """Move the weights along an ascent.

        Args:
            ascent: The ascent; its direction is consumed.
            measure: Whether to look at the rounding, if it is this update's turn.

        Returns:
            The record that puts them back.
        """
        measure = measure and self.run.measures(self.update)
        borrowed = self.space.moved(ascent.direction, ascent.scale, measure=measure)
        self.run.note(borrowed.realised)
        return borrowed

    @staticmethod
    def descending(ascent: Ascent, criterion: Any) -> Any:
        """Choose the criterion of the passes after an ascent.

        Args:
            ascent: The ascent.
            criterion: The task's own criterion.

        Returns:
            The criterion, or one that makes fairseq skip the update.
        """
        return OverflowingCriterion(criterion) if ascent.overflow else criterion

    def _passes(
        self, batches: Sequence[Batch], tally: Tally, *, shared: bool, criterion: Any, **kwargs: Any
    ) -> list[Pass]:
        """Run the micro-batches at w, count them, and put generators and buffers back."""
        start = self.run.weights.state()
        passes: list[Pass] = []
        try:
            for sample, ignored in batches:
                state = self.run.weights.state() if passes else start
                logging_output = None
                if not ignored:
                    _, sample_size, logging_output = self.task_step(
                        sample, criterion=criterion, ignore_grad=False, **kwargs
                    )
                    tally.sample_size += float(utils.item(sample_size))
                    if not isinstance(criterion, WeighingCriterion):
                        tally.count_uniform(float(utils.item(logging_output.get("nsentences", 0))))
                passes.append(Pass(state, logging_output))
            self._left = start.buffers.now()
        except RuntimeError as error:
            if not shared or not is_out_of_memory(error):
                raise
            # The other workers wait in the reduction: join it without a share,
            # and let the descent meet the same fate under the trainer's eyes.
            for param in self.space:
                param.grad = None
            tally.clear()
            passes = [Pass(start, None) for _ in batches]
        finally:
            start.replay()
        return passes

    def _count_and_step(  # noqa: PLR0917  (as the trainer calls it)
        self,
        sample: Sample,
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        **extra: Any,
    ) -> Result:
        arguments: dict[str, Any] = {
            "sample": sample,
            "model": model,
            "criterion": criterion,
            "optimizer": optimizer,
            "update_num": update_num,
            "ignore_grad": ignore_grad,
            **extra,
        }
        if self.position >= len(self.samples):
            # The trainer looks for the module that made a NaN.
            return self._task_step(**arguments)
        if self.position == len(self.samples) - 1:
            synchronise(model, criterion)
        try:
            return self.train_step(**arguments)
        except BaseException as error:
            # After an out-of-memory in one worker of several, fairseq goes on with
            # the other micro-batches, which belong to the same perturbation.
            going_on = is_out_of_memory(error) and self.position < len(self.samples) - 1
            if not going_on:
                self.give_back()
            raise
        finally:
            self.position += 1

    def _reduce(self, logging_outputs: list[Logging], criterion: Any) -> None:
        if total(logging_outputs, "unshared"):
            # Every worker sees the same outputs, so all of them join in.
            workers = self.trainer.data_parallel_world_size
            marks = torch.tensor(self.run.covered.marks(), device=self.space[0].device)
            add_up([marks], [], self.trainer.data_parallel_process_group)
            self.run.covered.settle(marks.tolist(), workers)
        weighs = self.settings.method == "delta_sam"
        reduce_and_log(logging_outputs, criterion, self._task_reduce, weighs=weighs)


class UpdateScope(Update):
    """One perturbation for all micro-batches of all workers.

    The first micro-batch's call runs the whole ascent, whatever its share of
    it; the last one's puts the weights back, before gradients are reduced.
    """

    _borrowed: Borrowed | None = None
    _realised: Realised | None = None
    _ascent: Ascent

    def train_step(self, sample: Sample, model: Any, ignore_grad: bool, **kwargs: Any) -> Result:  # noqa: D102
        first, last = self.position == 0, self.position == len(self.samples) - 1
        kwargs = {**kwargs, "model": model}
        if first:
            others = [self.trainer._prepare_sample(s) for s in self.samples[1:]]
            self._ascent = self.ascend(
                [(sample, ignore_grad), *others],
                shared=self.trainer.data_parallel_world_size > 1,
                seed=self.seed,
                **kwargs,
            )
            self._borrowed = self.move(self._ascent, measure=True)
            self._realised = self._borrowed.realised
        state, at_weights = self._ascent.passes[self.position]
        kwargs["criterion"] = self.descending(self._ascent, kwargs["criterion"])
        state.replay()
        loss, sample_size, moved = self.task_step(sample, ignore_grad=ignore_grad, **kwargs)
        if last:
            self.give_back()
        sums = AscentSums()
        if first:
            sums = self._ascent.sums.with_realised(self._realised)
        return loss, sample_size, combined(at_weights or moved, moved, sums)

    def give_back(self) -> None:  # noqa: D102
        if self._borrowed is not None:
            self._borrowed.give_back()
        super().give_back()

    @property
    def seed(self) -> int:
        """Seed of this update's random direction, the same on every worker."""
        return seed_for(self.trainer.cfg.common.seed, self.update)


class MicroScope(Update):
    """One perturbation for each micro-batch of each worker, or for each sentence."""

    def train_step(self, sample: Sample, model: Any, ignore_grad: bool, **kwargs: Any) -> Result:  # noqa: D102
        kwargs = {**kwargs, "model": model}
        if ignore_grad:
            loss, sample_size, output = self.task_step(sample, ignore_grad=True, **kwargs)
            return loss, sample_size, combined(output, output, AscentSums())
        pieces = [sample]
        if self.settings.method == "per_instance":
            criterion = self.trainer.get_criterion()
            pieces = split_by_sentence(sample, criterion.padding_idx)
            step = partial(self.task_step, **{**kwargs, "ignore_grad": False})
            self.run.adding_up.check_pieces(
                step, self.trainer.get_model(), criterion, sample, pieces
            )
        start = self.run.weights.state()
        outputs, moved_outputs, sums, losses, sizes = [], [], AscentSums(), [], []
        for number, piece in enumerate(pieces):
            start.buffers.replay()
            ascent = self.ascend([(piece, False)], shared=False, seed=self.seed, **kwargs)
            state, at_weights = ascent.passes[0]
            used = {**kwargs, "criterion": self.descending(ascent, kwargs["criterion"])}
            with ExitStack() as stack:
                borrowed = self.move(ascent, measure=self.position == 0 and number == 0)
                stack.callback(borrowed.give_back)
                if number < len(pieces) - 1:
                    stack.enter_context(without_sync(model, kwargs["criterion"]))
                state.replay()
                loss, size, moved = self.task_step(piece, ignore_grad=False, **used)
            self.give_back()
            outputs.append(at_weights or moved)
            moved_outputs.append(moved)
            sums = sums.plus(ascent.sums.with_realised(borrowed.realised))
            losses.append(loss)
            sizes.append(size)
        if len(pieces) > 1 and start.buffers.changed():
            self._leave_buffers(sample, start, **kwargs)
        if self.trainer.data_parallel_world_size > 1:
            sums = sums._replace(unshared=float(self.run.covered.unshared))
        if len(pieces) == 1:
            return losses[0], sizes[0], combined(outputs[0], moved_outputs[0], sums)
        return sum(losses), sum(sizes), combined(added(outputs), added(moved_outputs), sums)

    def _leave_buffers(self, sample: Sample, start: PassState, **kwargs: Any) -> None:
        """Leave the buffers as a pass of the whole micro-batch does, which is run for that."""
        end = RandomState.capture(self.space)
        start.replay()
        with (
            gradients_aside([*self.space, *self.run.weights.others()]),
            without_sync(kwargs["model"], kwargs["criterion"]),
        ):
            self.task_step(sample, ignore_grad=True, **kwargs)
        end.replay()

    @property
    def seed(self) -> int:
        """Seed of this micro-batch's random direction."""
        update = seed_for(self.trainer.cfg.common.seed, self.update)
        return seed_for(update, self.position)


@contextmanager
def _replaced(task: Any, name: str, method: Callable[..., Any]) -> Generator[None, None, None]:
    missing = object()
    before = vars(task).get(name, missing)
    setattr(task, name, method)
    try:
        yield
    finally:
        if before is missing:
            delattr(task, name)
        else:
            setattr(task, name, before)
