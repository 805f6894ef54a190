"""The models that are measured, each with the trainer that ``fairseq-train`` would build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.trainer import Trainer

from deltasam_fairseq.benchmarks.synthetic import Shape, write_labelled, write_pairs
from deltasam_fairseq.core.vectors import unique
from deltasam_fairseq.fairseq_plugin import register  # noqa: F401  (the hook is what is measured)


@dataclass(frozen=True)
class Workload:
    """One model on one batch.

    Args:
        flags: Its command line for ``fairseq-train``, data and method apart.
        shape: Size of the batch.
        write: Writes the data set.
    """

    flags: tuple[str, ...]
    shape: Shape
    write: Callable[[Path, Shape, int], None]


_COMMON = (
    "--lr 1e-4 --dropout 0.1 --num-workers 0 --no-save --disable-validation "
    "--required-batch-size-multiple 1 "
)
_TRANSLATION = (
    _COMMON + "--task translation --source-lang src --target-lang tgt --arch transformer "
    "--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --share-all-embeddings "
    "--encoder-layers {0} --encoder-embed-dim {1} --encoder-ffn-embed-dim {2} "
    "--encoder-attention-heads {3} --decoder-layers {0} --decoder-embed-dim {1} "
    "--decoder-ffn-embed-dim {2} --decoder-attention-heads {3}"
)
_CLASSIFICATION = (
    _COMMON + "--task sentence_prediction --arch roberta_base --criterion sentence_prediction "
    "--num-classes 2 --init-token 0 --separator-token 2 --max-positions 128 "
    "--encoder-layers {0} --encoder-embed-dim {1} --encoder-ffn-embed-dim {2} "
    "--encoder-attention-heads {3}"
)

# By model, then size. The numbers are layers, width, inner width and heads.
WORKLOADS = {
    "translation": {
        "default": Workload(
            tuple(_TRANSLATION.format(6, 256, 1024, 4).split()),
            Shape(16, 64, 128, 8000),
            write_pairs,
        ),
        "tiny": Workload(
            tuple(_TRANSLATION.format(1, 16, 32, 2).split()), Shape(4, 3, 6, 50), write_pairs
        ),
    },
    "classification": {
        "default": Workload(
            tuple(_CLASSIFICATION.format(6, 384, 1536, 6).split()),
            Shape(16, 32, 64, 8000),
            write_labelled,
        ),
        "tiny": Workload(
            tuple(_CLASSIFICATION.format(1, 16, 32, 2).split()), Shape(4, 3, 6, 50), write_labelled
        ),
    },
}


def flags_of(workload: Workload, method: str, seed: int, device: torch.device) -> list[str]:
    """Return a trainer's whole command line, without the data folder.

    Args:
        workload: The model and its batch.
        method: Name of the method.
        seed: fairseq's seed.
        device: ``cpu`` or ``cuda``.

    Returns:
        Flags of ``fairseq-train``.
    """
    return [
        *workload.flags,
        *("--optimizer", "delta_sam", "--sam-method", method, "--seed", str(seed)),
        *("--batch-size", str(workload.shape.sentences)),
        *(["--cpu"] if device.type == "cpu" else []),
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
    return Trainer(cfg, task, model, criterion)


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
        Bytes.
    """
    return sum(p.numel() * p.element_size() for p in unique(trainer.optimizer.params))


def parameter_count(trainer: Trainer) -> int:
    """Count the parameters that train, tied ones once.

    Args:
        trainer: From :func:`build_trainer`.

    Returns:
        How many numbers they hold.
    """
    return sum(p.numel() for p in unique(trainer.optimizer.params))
