"""Several perturbations in one update, each shared by a group of its sentences.

With one group this is SAM or delta-SAM, with as many as there are sentences it is Eq. 2. SAM's
groups within a micro-batch are the batched engine's, at the cost of one. Where it is not exact, for
delta-SAM, and over several micro-batches each group's sentences are a smaller batch, on which
the ascent and the descent run.

The sentences are those of the update on this worker: with several workers each has its own
groups, and no ascent is added up over them.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.core.groups import dealt
from deltasam_fairseq.core.noise import seed_for
from deltasam_fairseq.core.perturb import Borrowed
from deltasam_fairseq.fairseq_plugin.criterions.readers import reader_for
from deltasam_fairseq.fairseq_plugin.passes import Result
from deltasam_fairseq.fairseq_plugin.sharpness.ascent import ascend
from deltasam_fairseq.fairseq_plugin.sharpness.meters import (
    AscentSums,
    Logging,
    added,
    combined,
)
from deltasam_fairseq.fairseq_plugin.sharpness.parallel import without_sync
from deltasam_fairseq.fairseq_plugin.sharpness.per_instance import AllAtOnce
from deltasam_fairseq.fairseq_plugin.sharpness.samples import (
    Sample,
    containers_copied,
    ids,
    split,
)
from deltasam_fairseq.fairseq_plugin.sharpness.step import SharpStep
from deltasam_fairseq.per_instance import Dealing


class GroupedMicro(AllAtOnce):
    """Groups of the sentences of each micro-batch of each worker."""

    def at_once(self, sample: Sample, given: Mapping[str, Any]) -> Result | None:  # noqa: D102
        settings = self.settings
        by_loop = settings.method != "sam" or settings.ascent_fraction < 1
        if by_loop or settings.per_instance_engine == "loop":
            return None
        return super().at_once(sample, given)

    def dealing(self, sample: Sample) -> Dealing:  # noqa: D102
        def rows(losses: Tensor) -> list[list[int]]:
            by = losses if self.settings.group_by == "loss" else None
            return [rows for (rows,) in dealt([ids(sample)], self.settings.groups, self.seed, by)]

        return rows

    @property
    def seed(self) -> int:
        """Seed of the micro-batch's groups, or of those of an update that has no other."""
        if self.settings.scope == "update":
            return seed_for(self.trainer.cfg.common.seed, self.update)
        return super().seed

    def pieces(self, sample: Sample, given: Mapping[str, Any]) -> list[Sample]:  # noqa: D102
        criterion = self.trainer.get_criterion()
        by_loss = self.settings.group_by == "loss"
        losses = _losses(self, [sample], given) if by_loss else torch.zeros(0)
        pieces = split(sample, self.dealing(sample)(losses), criterion.padding_idx)
        self.check_pieces(sample, pieces, given)
        return pieces


@dataclass
class _Outcome:
    """What the pieces of one micro-batch gave."""

    losses: list[Any] = field(default_factory=list)
    sizes: list[Any] = field(default_factory=list)
    at_weights: list[Logging] = field(default_factory=list)
    moved: list[Logging] = field(default_factory=list)

    def result(self, sums: AscentSums) -> Result:
        outputs = combined(added(self.at_weights), added(self.moved), sums)
        return sum(self.losses), sum(self.sizes), outputs


class GroupedUpdate(SharpStep):
    """Groups of the sentences of all micro-batches of this worker.

    The first micro-batch's call runs all passes but the last one, which is the last
    micro-batch's: there PyTorch's wrapper reduces the gradients of the whole update.
    After a lack of memory the micro-batches that are left have groups of their own.
    """

    # Position of the micro-batch whose call dealt the groups.
    _dealt_at: int | None = None
    _borrowed: Borrowed | None = None
    _passes: Generator[None, None, None]

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
            try:
                return self._grouped(sample, criterion, given, ignore_grad)
            except BaseException:
                self.restore()
                self._dealt_at = None
                raise

    def _grouped(
        self, sample: Sample, criterion: Any, given: Mapping[str, Any], ignore_grad: bool
    ) -> Result:
        """Run the passes that are this micro-batch's turn."""
        first, last = self.position == 0, self.position == len(self.samples) - 1
        if first or self._dealt_at is None:
            first, self._dealt_at = True, self.position
            others = [self.trainer._prepare_sample(s) for s in self.samples[self.position + 1 :]]
            batches = [(sample, ignore_grad), *others]
            self._sums = AscentSums()
            self._outcomes = [_Outcome() for _ in batches]
            real = [({} if ignored else batch) for batch, ignored in batches]
            self._passes = self._run(real, criterion, given)
            next(self._passes, None)
        if ignore_grad:
            loss, size, output = self.step(
                sample=containers_copied(sample), criterion=criterion, ignore_grad=True, **given
            )
            sums = self.with_norms(self._sums if first else AscentSums())
            return loss, size, combined(output, output, sums)
        if last:
            next(self._passes, None)
            self.restore()
        outcome = self._outcomes[self.position - self._dealt_at]
        return outcome.result(self.with_norms(self._sums if first else AscentSums()))

    def restore(self) -> None:  # noqa: D102
        if self._borrowed is not None:
            self._borrowed.restore()
            self._borrowed = None
        super().restore()

    def _run(
        self, samples: Sequence[Sample], criterion: Any, given: Mapping[str, Any]
    ) -> Generator[None, None, None]:
        """Run the groups one after the other; stop once, before the last pass."""
        padding = self.trainer.get_criterion().padding_idx
        losses = _losses(self, samples, given) if self.settings.group_by == "loss" else None
        numbers = [ids(sample) if sample else [] for sample in samples]
        groups = dealt(numbers, self.settings.groups, self.seed, losses)
        pieces = [
            split(sample, [group[place] for group in groups if group[place]], padding)
            if sample
            else []
            for place, sample in enumerate(samples)
        ]
        for sample, own in zip(samples, pieces, strict=True):
            self.check_pieces(sample, own, given)
        rests = [iter(own) for own in pieces]
        start = self.run.weights.state()
        for number, group in enumerate(groups):
            places = [place for place, rows in enumerate(group) if rows]
            batch = [next(rests[place]) for place in places]
            start.buffers.replay()
            ascent = ascend(
                self.step,
                [(self.climbing(piece, self.seed + number), False) for piece in batch],
                self.run,
                criterion,
                self.weighing(seed=self.seed, sole=len(batch) == 1),
                workers=None,
                given=given,
                stepping=self.stepping,
            )
            self._borrowed = self.move(ascent, measure=number == 0)
            self._sums = self._sums.plus(ascent.sums.with_realised(self._borrowed.realised))
            for place, piece, (state, at_weights) in zip(places, batch, ascent.passes, strict=True):
                final = number == len(groups) - 1 and place == places[-1]
                if final and place == len(samples) - 1:
                    yield
                state.replay()
                with ExitStack() as stack:
                    if not final:
                        stack.enter_context(without_sync(given["model"], criterion))
                    loss, size, moved = self.descend(ascent, piece, criterion, given)
                outcome = self._outcomes[place]
                outcome.losses.append(loss)
                outcome.sizes.append(size)
                outcome.at_weights.append(at_weights or moved)
                outcome.moved.append(moved)
            self.restore()
        if len(groups) > 1 and start.buffers.changed():
            self.leave_buffers([s for s in samples if s], start, criterion, given)
        if self.trainer.data_parallel_world_size > 1:
            self._sums = self._sums._replace(unshared=float(self.run.covered.unshared))


def _losses(step: SharpStep, samples: Sequence[Sample], given: Mapping[str, Any]) -> Tensor:
    """Score the sentences of some micro-batches, and put generators and buffers back."""
    criterion = step.trainer.get_criterion()
    read, state = reader_for(criterion), step.run.weights.state()
    with torch.no_grad(), without_sync(given["model"]):
        losses = [
            read(criterion, given["model"], containers_copied(sample)).losses
            for sample in samples
            if sample
        ]
    state.replay()
    torch.clear_autocast_cache()  # its casts were made without a graph
    return torch.cat(losses) if losses else torch.zeros(0)
