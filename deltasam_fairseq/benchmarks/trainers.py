"""The trainer that ``fairseq-train`` would build for a workload, and its batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.trainer import Trainer

from deltasam_fairseq.benchmarks.workloads import Workload
from deltasam_fairseq.core.vectors import unique
from deltasam_fairseq.fairseq_plugin import register  # noqa: F401  (the hook is what is measured)

# The loss scale of fairseq's examples/roberta/README.glue.md: it starts where the first
# gradients do not overflow, since a skipped update is no update to measure.
PRECISION_FLAGS = {
    "fp32": "",
    "fp16": "--fp16 --fp16-init-scale 4 --threshold-loss-scale 1 --fp16-scale-window 128",
    "bf16": "--bf16",
}


def flags_of(
    workload: Workload, method: str, seed: int, device: torch.device, precision: str = "fp32"
) -> list[str]:
    """Return a trainer's whole command line, without the data folder.

    Args:
        workload: The model and its batch.
        method: What stands behind ``--sam-method``.
        seed: fairseq's seed.
        device: ``cpu`` or ``cuda``.
        precision: One of :data:`PRECISION_FLAGS`.

    Returns:
        Flags of ``fairseq-train``.
    """
    # Without a GPU fairseq keeps no flat copies; with several it expects as many processes.
    where = {
        "cpu": ["--cpu", *(["--fp16-no-flatten-grads"] if precision == "fp16" else [])],
        "cuda": ["--distributed-world-size", "1"],
    }
    return [
        *workload.flags,
        *("--optimizer", "delta_sam", "--sam-method", *method.split()),
        *("--seed", str(seed)),
        *("--batch-size", str(workload.shape.sentences)),
        *PRECISION_FLAGS[precision].split(),
        *where[device.type],
    ]


def build_trainer(folder: Path, flags: list[str]) -> Trainer:
    """Build a trainer as ``fairseq-train`` does.

    Args:
        folder: Where the workload's data was written.
        flags: From :func:`flags_of`.

    Returns:
        The trainer; its task has loaded the training set.
    """
    metrics.reset()
    args = options.parse_args_and_arch(options.get_training_parser(), [str(folder), *flags])
    cfg = convert_namespace_to_omegaconf(args)
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(cfg.common.seed)
    model, criterion = task.build_model(cfg.model), task.build_criterion(cfg.criterion)
    task.load_dataset("train", combine=False, epoch=1)
    trainer = Trainer(cfg, task, model, criterion)
    # It saves what it has before it lets an error through: gigabytes, and for nobody.
    trainer.save_checkpoint = lambda *_: None
    return trainer


def batch_of(trainer: Trainer) -> Any:
    """Return the one batch of a workload's training set, on the CPU.

    Args:
        trainer: From :func:`build_trainer`.

    Returns:
        fairseq's mini-batch.
    """
    iterator = trainer.task.get_batch_iterator(
        trainer.task.dataset("train"),
        max_sentences=trainer.cfg.dataset.batch_size,
        required_batch_size_multiple=1,
    )
    (batch,) = iterator.next_epoch_itr(shuffle=False)
    return batch


def parameter_bytes(trainer: Trainer) -> int:
    """Return the size of one copy of the parameters that train, tied ones once.

    Args:
        trainer: From :func:`build_trainer`.

    Returns:
        Bytes, in the precision that the model computes with.
    """
    return sum(p.numel() * p.element_size() for p in _trained(trainer))


def parameter_count(trainer: Trainer) -> int:
    """Count the parameters that train, tied ones once.

    Args:
        trainer: From :func:`build_trainer`.

    Returns:
        How many numbers they hold.
    """
    return sum(p.numel() for p in _trained(trainer))


def _trained(trainer: Trainer) -> list[torch.Tensor]:
    return list(unique(p for p in trainer.model.parameters() if p.requires_grad))
