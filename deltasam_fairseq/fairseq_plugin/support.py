"""What a sharpness-aware run supports, checked before the first update."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch

from deltasam_fairseq.core.estimators import OF_NORMS
from deltasam_fairseq.fairseq_plugin.config import Sharpness
from deltasam_fairseq.fairseq_plugin.criterions.base import SentenceCriterion
from deltasam_fairseq.fairseq_plugin.criterions.readers import reader_for
from deltasam_fairseq.fairseq_plugin.embedding_noise import encoder_of
from deltasam_fairseq.fairseq_plugin.passes import is_plain
from deltasam_fairseq.fairseq_plugin.sharpness.engine_passes import reader_if_batched
from deltasam_fairseq.per_instance import Unsupported

logger = logging.getLogger(__name__)

# Tasks that cannot be supported, with the reason.
TASKS = {
    "OnlineBackTranslationTask": "it generates its training data inside train_step, so the two "
    "passes of a step would not see the same data",
}

# Settings of fairseq under which a step would be wrong: name, where, reason.
_SETTINGS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("--tpu", lambda c: c.common.tpu, "is not supported: the step reads losses on the host"),
    (
        "--use-bmuf",
        lambda c: c.optimization.use_bmuf,
        "is not supported: workers have different weights between its synchronisations",
    ),
    (
        "--pipeline-model-parallel",
        lambda c: c.distributed_training.pipeline_model_parallel,
        "is not supported: a worker holds a part of the weights only",
    ),
    (
        "--ddp-backend fully_sharded or slowmo",
        lambda c: c.distributed_training.ddp_backend in ("fully_sharded", "slowmo"),
        "is not supported: a worker holds a part of the weights, or weights of its own; use "
        "legacy_ddp or pytorch_ddp",
    ),
    (
        "--base-layers",
        lambda c: getattr(c.model, "base_layers", 0) > 0,
        "is not supported: workers have experts of their own, and the ascent adds gradients up "
        "as if all had the same weights",
    ),
    (
        "--model-parallel-size above 1",
        lambda c: c.common.model_parallel_size > 1,
        "is not supported: a worker holds a part of the weights only",
    ),
)


def check_run(trainer: Any, settings: Sharpness) -> None:
    """Refuse, with the reason, what a step would get wrong.

    Args:
        trainer: fairseq's trainer, with its optimizer built.
        settings: The run's settings.

    Raises:
        ValueError: If a setting, the task or the model is not supported. An
            unknown criterion raises what
            :func:`~deltasam_fairseq.fairseq_plugin.criterions.readers.reader_for` says.
    """
    _check_launch(trainer)
    if settings.freelb is not None:
        _check_freelb(trainer)
    if not settings.active:
        return
    for flag, given, reason in _SETTINGS:
        if given(trainer.cfg):
            raise ValueError(f"{flag} {reason}, or pass --sam-method none")
    for kind in type(trainer.task).__mro__:
        if kind.__name__ in TASKS:
            raise ValueError(
                f"{kind.__name__} is not supported by --optimizer delta_sam: {TASKS[kind.__name__]}"
            )
    for name, module in trainer.get_model().named_modules():
        if isinstance(module, torch.nn.Embedding) and module.sparse:
            raise ValueError(
                f"the embedding {name} has sparse gradients, but a perturbation covers all "
                "weights; build it with sparse=False"
            )
        if _overwrites_weights(module):
            raise ValueError(
                f"--quant-noise-pq is not supported: {name} overwrites its weights in each forward "
                "pass, so the passes of a step would not see the same weights. "
                "--quant-noise-scalar works; or pass --sam-method none"
            )
    _say_what_to_expect(trainer, settings)
    _check_criterion(trainer, settings)
    grouped = settings.method == "sam" and settings.groups > 1
    if settings.per_instance_engine == "batched" and (settings.method == "per_instance" or grouped):
        _check_batched(trainer, settings)


def _check_criterion(trainer: Any, settings: Sharpness) -> None:
    """Refuse a criterion whose sentences a method cannot weigh or take apart."""
    criterion = trainer.get_criterion()
    by_loss = settings.groups > 1 and settings.group_by == "loss"
    if settings.method == "delta_sam" or by_loss:
        reader_for(criterion)
    if by_loss and not is_plain(trainer.task.train_step):
        raise ValueError(
            "--sam-group-by loss scores a batch in one call of the criterion, as fairseq's own "
            f"train_step does, but {type(trainer.task).__name__} trains by "
            f"{getattr(trainer.task.train_step, '__qualname__', repr(trainer.task.train_step))}; "
            "use --sam-group-by random"
        )
    own = isinstance(criterion, SentenceCriterion)
    if settings.method == "per_instance" and own and criterion.dependence:
        raise ValueError(
            "--sam-method per_instance perturbs the weights for each sentence by itself, but the "
            f"sentences of {type(criterion).__name__} are not independent: "
            f"{criterion.dependence}. Use --sam-method delta_sam or sam"
        )
    by_sentence = settings.method == "delta_sam" and settings.estimator in ("exact", *OF_NORMS)
    if by_sentence and own and criterion.mixes_workers and trainer.data_parallel_world_size > 1:
        raise ValueError(
            f"--sam-estimator {settings.estimator} differentiates each sentence's loss by "
            f"itself, which {type(criterion).__name__} cannot do on several workers: a "
            "gradient reaches the sentences of all of them. Use finite_difference, or one "
            "worker"
        )
    parts = {"--sam-groups": settings.groups, "--sam-ascent-fraction": settings.ascent_fraction}
    for flag, value in parts.items():
        if value != 1 and own and criterion.dependence:
            raise ValueError(
                f"{flag} runs parts of a batch by themselves, where the losses are others: the "
                f"sentences of {type(criterion).__name__} are not independent: "
                f"{criterion.dependence}. Leave {flag} at 1"
            )


def _say_what_to_expect(trainer: Any, settings: Sharpness) -> None:
    if settings.groups > 1 and settings.scope == "update" and trainer.data_parallel_world_size > 1:
        logger.info(
            "--sam-groups %d: each worker deals its own sentences out to so many groups, with "
            "perturbations of their own",
            settings.groups,
        )
    gibbs = (settings.method, settings.estimator) == ("delta_sam", "gibbs")
    for flag, idle, needs in (
        ("--sam-group-by", settings.group_by != "random" and settings.groups == 1, "--sam-groups"),
        (
            "--sam-gibbs-temperature",
            settings.gibbs_temperature != 1 and not gibbs,
            "--sam-method delta_sam --sam-estimator gibbs",
        ),
    ):
        if idle:
            logger.warning("%s does nothing without %s", flag, needs)
    schedule = trainer.cfg.lr_scheduler
    if settings.tail < 1 and schedule._name == "fixed" and schedule.force_anneal is None:
        logger.warning(
            "--sam-tail perturbs while the learning rate falls, and with --lr-scheduler fixed it "
            "does not; polynomial_decay, inverse_sqrt or cosine let it fall"
        )


def last_update(trainer: Any) -> int | None:
    """Find out after how many updates a run ends.

    Args:
        trainer: fairseq's trainer.

    Returns:
        Their number; ``None`` where only a number of epochs is given.
    """
    scheduled = getattr(trainer.cfg.lr_scheduler, "total_num_update", None)
    return int(trainer.cfg.optimization.max_update or scheduled or 0) or None


def _overwrites_weights(module: torch.nn.Module) -> bool:
    """Tell whether quantization noise on blocks changes a module's weights in each pass."""
    hooks = module._forward_pre_hooks.values()
    return any(hook.__module__ == "fairseq.modules.quant_noise" for hook in hooks)


def _check_freelb(trainer: Any) -> None:
    """Refuse what FreeLB would get wrong, or nobody has tried, with and without a perturbation."""
    without = "pass --freelb-steps 0"
    untested = [flag for flag, given, _ in _SETTINGS if given(trainer.cfg)]
    if any(map(_overwrites_weights, trainer.get_model().modules())):
        untested.append("--quant-noise-pq")
    if untested:
        raise ValueError(f"FreeLB is not supported beside {untested[0]}; {without}")
    task = trainer.task
    if not is_plain(task.train_step):
        name = getattr(task.train_step, "__qualname__", repr(task.train_step))
        raise ValueError(
            "FreeLB needs fairseq's own train_step, which calls the criterion once for a batch of "
            f"one data set, but {type(task).__name__} trains by {name}; {without}"
        )
    try:
        encoder_of(trainer.get_model())
    except ValueError as reason:
        raise ValueError(f"FreeLB: {reason}, or {without}") from reason


def _check_batched(trainer: Any, settings: Sharpness) -> None:
    """Refuse what the batched engine is known not to do before it has seen a batch."""
    if settings.freelb is not None:
        raise ValueError(
            "--sam-per-instance-engine batched: with FreeLB a perturbation comes from the "
            "gradients of all passes together, and the engine knows those of one; or pass auto"
        )
    if settings.adaptive:
        raise ValueError(
            "--sam-per-instance-engine batched: adaptive neighbourhoods have no batched "
            "perturbation; or pass auto"
        )
    try:
        reader_if_batched(trainer.task.train_step, trainer.get_criterion())
    except Unsupported as reason:
        raise ValueError(f"--sam-per-instance-engine batched: {reason}; or pass auto") from reason


def _check_launch(trainer: Any) -> None:
    """Refuse processes that were meant to work together and do not know of each other."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" in os.environ and started > 1 == trainer.data_parallel_world_size:
        raise ValueError(
            f"torchrun started {started} processes, but fairseq ignores that without CUDA: each "
            "would train by itself and overwrite the others' checkpoints. Pass "
            "--distributed-world-size, --distributed-rank, --distributed-init-method env:// and "
            "--distributed-no-spawn; the whole line is in docs/workers.md"
        )
