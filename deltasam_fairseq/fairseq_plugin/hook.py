"""The one place where fairseq's trainer is changed.

fairseq gives an optimizer no way to run more passes: ``step`` gets no closure,
and under mixed precision the registered optimizer sees neither the model nor
the loss. So two methods of ``Trainer`` are wrapped, and those that save and load: a
resumed run has to know what the random direction covered. With any optimizer but
``delta_sam``, and with ``--sam-method none`` or ``--sam-rho 0`` without ``--freelb-steps``,
they do nothing but call the originals and, unless ``--sam-norms none``, log norms of gradients.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from fairseq.trainer import Trainer

from deltasam_fairseq.fairseq_plugin import checkpoints, step_errors
from deltasam_fairseq.fairseq_plugin.compat import (
    allow_own_checkpoints,
    avoid_encoder_kernel,
    check_fairseq,
    let_averages_begin,
    versions,
)
from deltasam_fairseq.fairseq_plugin.criterions.base import SentenceCriterion
from deltasam_fairseq.fairseq_plugin.freelb import FreeLB
from deltasam_fairseq.fairseq_plugin.optimizer import sharpness_of
from deltasam_fairseq.fairseq_plugin.passes import Step
from deltasam_fairseq.fairseq_plugin.sharpness.grouped import GroupedMicro, GroupedUpdate
from deltasam_fairseq.fairseq_plugin.sharpness.meters import forget_empty
from deltasam_fairseq.fairseq_plugin.sharpness.per_instance import (
    BatchedInstances,
    SentenceBySentence,
)
from deltasam_fairseq.fairseq_plugin.sharpness.run import Run
from deltasam_fairseq.fairseq_plugin.sharpness.sentence_norms import MeasuredStep, SentenceNorms
from deltasam_fairseq.fairseq_plugin.sharpness.step import MicroScope, SharpStep, UpdateScope
from deltasam_fairseq.fairseq_plugin.support import check_run, last_update

logger = logging.getLogger(__name__)

# Among what fairseq calls extra state, names of parameters: the optimizer's state stays
# the inner one's, and a run with another optimizer passes over them.
_COVERED = "deltasam_covered"

_norms: weakref.WeakKeyDictionary[Trainer, SentenceNorms] = weakref.WeakKeyDictionary()
_runs: weakref.WeakKeyDictionary[Trainer, Run] = weakref.WeakKeyDictionary()


def install() -> None:
    """Wrap the trainer's methods, once per process."""
    if hasattr(Trainer.train_step, "deltasam"):
        return
    check_fairseq()
    allow_own_checkpoints()
    avoid_encoder_kernel()
    let_averages_begin()
    build, step = Trainer._build_optimizer, Trainer.train_step

    @functools.wraps(build)
    def _build_optimizer(self: Trainer) -> None:
        build(self)
        criterion = self.get_criterion()
        if isinstance(criterion, SentenceCriterion):
            criterion.joins(self)
        settings = sharpness_of(self.optimizer)
        if settings is not None:
            settings = settings.until(last_update(self))
            logger.info("%s; %s", settings, versions())
            check_run(self, settings)
            norms = SentenceNorms(settings.norms, self.get_model(), criterion, cuda=bool(self.cuda))
            if settings.active:
                _runs[self] = Run(self, settings, norms)
            if norms.wanted:
                _norms[self] = norms

    @functools.wraps(step)
    def train_step(self: Trainer, samples: Any, raise_oom: bool = False) -> Any:
        settings = sharpness_of(self.optimizer)  # which builds it, and with it the run
        run = _runs.get(self)
        norms = _norms.get(self)
        if run is not None or norms is not None:
            forget_empty()
        made = self.task.train_step
        if isinstance(made, (SharpStep, FreeLB, MeasuredStep)):
            # With --amp the trainer tries a batch again from inside its own step.
            if isinstance(made, (SharpStep, MeasuredStep)):
                made.restart()
            return step(self, samples, raise_oom)
        # sharpness(freelb(task.train_step)), each where it is asked for.
        with ExitStack() as stack:
            if settings is not None and settings.freelb is not None:
                freelb = FreeLB(self.task.train_step, self, settings.freelb)
                stack.enter_context(freelb.in_place())
            if run is not None and run.settings.perturbs(self.get_num_updates()):
                sharpness = sharpness_maker(self, samples, run)
                perturbed = sharpness(self.task.train_step)
                stack.enter_context(perturbed.in_place())
                samples = perturbed.samples
            elif norms is not None:
                measured = MeasuredStep(self.task.train_step, self, samples, norms)
                stack.enter_context(measured.in_place())
            return step(self, samples, raise_oom)

    train_step.deltasam = True  # type: ignore[attr-defined]
    Trainer._build_optimizer = _build_optimizer
    Trainer.train_step = train_step
    checkpoints.install()
    _save_what_is_covered()
    step_errors.install()


def sharpness_maker(
    trainer: Trainer, samples: Sequence[Any], run: Run
) -> Callable[[Step], SharpStep]:
    """Choose how an update is perturbed.

    Args:
        trainer: fairseq's trainer.
        samples: The micro-batches of this worker's update.
        run: The run's settings and weights; it perturbs this update.

    Returns:
        What makes the update's step of the task's own. Every sentence has its own
        perturbation with ``per_instance``, so there the scope makes no difference.
    """
    settings = run.settings
    kind: type[SharpStep]
    if settings.method == "per_instance":
        by_loop = settings.per_instance_engine == "loop"
        kind = SentenceBySentence if by_loop else BatchedInstances
    elif settings.groups > 1:
        together = settings.scope == "update" and len(samples) > 1
        kind = GroupedUpdate if together else GroupedMicro
    else:
        kind = UpdateScope if settings.scope == "update" else MicroScope
    return functools.partial(kind, trainer=trainer, samples=samples, run=run)


def _save_what_is_covered() -> None:
    """Let a resumed run draw the random directions that the undisturbed one does."""
    save, load = Trainer.save_checkpoint, Trainer.load_checkpoint

    @functools.wraps(save)
    def save_checkpoint(self: Trainer, filename: str, extra_state: dict[str, Any]) -> Any:
        run = _runs.get(self)
        names = run.covered.names() if run else []
        own = {_COVERED: names} if names else {}
        return save(self, filename, {**extra_state, **own})

    @functools.wraps(load)
    def load_checkpoint(
        self: Trainer, filename: str, reset_optimizer: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        extra_state = load(self, filename, reset_optimizer, *args, **kwargs)
        names = (extra_state or {}).get(_COVERED)
        if names and not reset_optimizer and checkpoints.uses_delta_sam(self):
            self.optimizer  # noqa: B018  (asking for it builds it, and with it the run)
            if self in _runs:
                _runs[self].covered.load(names)
        return extra_state

    Trainer.save_checkpoint, Trainer.load_checkpoint = save_checkpoint, load_checkpoint
