"""Tiny models and runs, through fairseq's own doors.

fairseq ships no test helpers with its wheel, so these are ours. Everything
runs in this process; a trainer made here is the one ``fairseq-train`` makes.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fairseq import options, tasks, utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from fairseq_cli import train as fairseq_train

from deltasam_fairseq.fairseq_plugin import register  # noqa: F401
from deltasam_fairseq.fairseq_plugin.criterions import readers
from tests.support import quick_config

quick_config.install()

if not hasattr(np, "compat"):
    # fairseq's language-model data sets use np.compat.long, which NumPy 2 dropped.
    np.compat = SimpleNamespace(long=int)  # type: ignore[attr-defined]

TINY = (
    "--encoder-layers 2 --decoder-layers 2 --encoder-embed-dim 16 --decoder-embed-dim 16 "
    "--encoder-ffn-embed-dim 24 --decoder-ffn-embed-dim 24 --encoder-attention-heads 2 "
    "--decoder-attention-heads 2"
).split()

TRANSLATION = (
    "--task translation --source-lang src --target-lang tgt --arch transformer "
    "--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --share-all-embeddings"
).split() + TINY

LSTM = (
    "--task translation --source-lang src --target-lang tgt --arch lstm --criterion cross_entropy "
    "--encoder-embed-dim 8 --decoder-embed-dim 8 --encoder-hidden-size 8 --decoder-hidden-size 8 "
    "--decoder-out-embed-dim 8"
).split()

ENCODER = (
    "--encoder-layers 2 --encoder-embed-dim 16 --encoder-ffn-embed-dim 24 "
    "--encoder-attention-heads 2"
).split()

PREDICTION = (
    "--task sentence_prediction --arch roberta_base --criterion sentence_prediction "
    "--num-classes 2 --init-token 0 --separator-token 2 --max-positions 32"
).split() + ENCODER

BERT = (
    "--task sentence_prediction --arch deltasam_bert_base --max-positions 32 --num-classes 2 "
    "--criterion deltasam_sentence_prediction --sentence-metrics matthews,accuracy --init-token 0"
).split() + ENCODER

COMMON = (
    "--cpu --optimizer delta_sam --lr 0.01 --batch-size 8 --max-epoch 2 --num-workers 0 "
    "--required-batch-size-multiple 1 --no-progress-bar --log-format json --log-interval 1 "
    "--no-save --disable-validation --dropout 0.1 --seed 3"
).split()


def flags(toy: Sequence[str], *, save: bool = False) -> list[str]:
    """Put the common flags before those of a toy problem; later ones win."""
    return [flag for flag in COMMON if not (save and flag == "--no-save")] + list(toy)


def without_cpu() -> list[str]:
    """Return the common flags for a run of one process on a GPU."""
    return [flag for flag in COMMON if flag != "--cpu"] + ["--distributed-world-size", "1"]


def on_device(sample: Any, device: torch.device) -> Any:
    """Bring a mini-batch from the CPU to where a trainer computes."""
    return utils.move_to_cuda(sample) if device.type == "cuda" else sample


def random_state(device: torch.device) -> torch.Tensor:
    """Return the state of the generator that dropout draws from, on the CPU."""
    return torch.cuda.get_rng_state() if device.type == "cuda" else torch.get_rng_state()


def config(data: Path, *extra: str, save: bool = False) -> Any:
    """Parse a ``fairseq-train`` command line whose flags win over ``COMMON``."""
    parser = options.get_training_parser()
    folder = ("--save-dir", str(data / "checkpoints"))
    args = options.parse_args_and_arch(parser, [str(data), *folder, *flags(extra, save=save)])
    return convert_namespace_to_omegaconf(args)


def make_trainer(
    data: Path, *extra: str, dtype: torch.dtype | None = None, cfg: Any = None
) -> Trainer:
    """Build the trainer of a command line, as ``fairseq-train`` does.

    Its task has loaded the training set.
    """
    metrics.reset()
    cfg = cfg or config(data, *extra)
    # fairseq takes --bf16 without a GPU for a TPU.
    cfg.common.tpu = False
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(cfg.common.seed)
    model = task.build_model(cfg.model)
    if dtype is not None:
        model = model.to(dtype)
    criterion = task.build_criterion(cfg.criterion)
    task.load_dataset("train", combine=False, epoch=1)
    trainer = Trainer(cfg, task, model, criterion)
    if dtype == torch.float64:
        # fairseq computes the norm that it logs in float32, which float64 refuses.
        trainer.clip_grad_norm = lambda _: torch.zeros(())
    return trainer


def batches(trainer: Trainer) -> list[Any]:
    """List the first epoch's mini-batches of this worker, in a fixed order."""
    iterator = trainer.task.get_batch_iterator(
        trainer.task.dataset("train"),
        max_tokens=trainer.cfg.dataset.max_tokens,
        max_sentences=trainer.cfg.dataset.batch_size,
        required_batch_size_multiple=1,
        seed=1,
    )
    return list(iterator.next_epoch_itr(shuffle=False))


def sentences(trainer: Trainer, which: Iterable[int]) -> Any:
    """Make a mini-batch of some sentences of the training set."""
    dataset = trainer.task.dataset("train")
    return dataset.collater([dataset[i] for i in which])


def updates(trainer: Trainer, groups: Sequence[Sequence[Any]]) -> list[dict[str, float]]:
    """Run one update per group of mini-batches; return what fairseq logged, unrounded."""
    logged = []
    for group in groups:
        with metrics.aggregate(new_root=True) as seen:
            trainer.train_step(list(group))
        logged.append(
            {k: float(m.avg) for k, m in seen.items() if getattr(m, "avg", None) is not None}
        )
    return logged


def used(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out what fairseq 0.12.2 has beside the weights that train.

    Copies of each encoder layer's weights, which loading a model fills, and a buffer that
    nobody fills.
    """
    blank = r"\.((in_proj|out_proj|fc[12])_(weight|bias)|_float_tensor)$"
    return {name: value for name, value in state.items() if not re.search(blank, name)}


def trained(
    data: Path, *flags: str, count: int = 1, freq: int = 1, dtype: torch.dtype | None = None
) -> tuple[Trainer, list[dict[str, float]]]:
    """Run the first updates of an epoch, of some micro-batches each; return what was logged."""
    trainer = make_trainer(data, *flags, dtype=dtype)
    samples = batches(trainer)
    groups = [samples[i : i + freq] for i in range(0, count * freq, freq)]
    return trainer, updates(trainer, groups)


def break_forward(trainer: Trainer, number: int, by: Exception | float) -> list[int]:
    """Let one forward pass from now on raise, or have its output multiplied.

    Args:
        trainer: Whose model; ``del model.forward`` mends it.
        number: Of the pass, from 1; 0 for none.
        by: What is raised, or the factor.

    Returns:
        A list with an entry for each pass that was run.
    """
    model, calls = trainer.get_model(), []
    forward = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) != number:
            return forward(*args, **kwargs)
        if isinstance(by, Exception):
            raise by
        output = forward(*args, **kwargs)
        return (output[0] * by, *output[1:])

    model.forward = counted
    return calls


def parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copy a trainer's parameters by name, in the optimizer's order."""
    return {n: p.detach().clone() for n, p in trainer.get_model().named_parameters()}


def train(data: Path, *extra: str, save: bool = False) -> list[dict[str, Any]]:
    """Run ``fairseq-train`` in this process; return the lines of its JSON log with numbers."""
    return _run(config(data, *extra, save=save))


def train_with(data: Path, *flags: str) -> list[dict[str, Any]]:
    """Run ``fairseq-train`` as :func:`train` does, with exactly these flags."""
    args = options.parse_args_and_arch(options.get_training_parser(), [str(data), *flags])
    return _run(convert_namespace_to_omegaconf(args))


@contextlib.contextmanager
def logged() -> Iterator[io.StringIO]:
    """Collect what fairseq's JSON bar logs, under the names train_inner, train and valid."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("fairseq.logging.progress_bar")
    logger.addHandler(handler)
    # setLevel, not the attribute: a logger remembers which lines it dropped before.
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield log
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _run(cfg: Any) -> list[dict[str, Any]]:
    metrics.reset()
    # fairseq counts for --patience in attributes that outlive a run.
    for attribute in ("best", "num_runs"):
        vars(fairseq_train.should_stop_early).pop(attribute, None)
    with logged() as log:
        fairseq_train.main(cfg)
    lines = []
    for line in log.getvalue().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]


@dataclass
class PreciseCrossEntropyConfig(FairseqDataclass):
    """No flags: the criterion below is for tests alone."""


@register_criterion("precise_cross_entropy", dataclass=PreciseCrossEntropyConfig)
class PreciseCrossEntropy(FairseqCriterion):
    """Cross entropy in the model's own precision; fairseq's casts to float32."""

    def __init__(self, cfg: PreciseCrossEntropyConfig, task: Any) -> None:
        super().__init__(task)

    def forward(self, model: Any, sample: Any, reduce: bool = True) -> Any:
        """Return loss, sample size and logging output."""
        logits = model(**sample["net_input"])[0]
        token = torch.nn.functional.cross_entropy(
            logits.flatten(0, -2),
            sample["target"].flatten(),
            ignore_index=self.padding_idx,
            reduction="none",
        )
        loss = token.sum() if reduce else token
        size = sample["ntokens"]
        counts = {"ntokens": size, "nsentences": sample["nsentences"], "sample_size": size}
        return loss, size, {"loss": loss.detach(), **counts}

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log the mean loss per token, in nats."""
        size = sum(log["sample_size"] for log in logging_outputs)
        loss = sum(log["loss"] for log in logging_outputs)
        metrics.log_scalar("loss", loss / size, size, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Everything logged is a number."""
        return True


readers.sentence_losses_for(PreciseCrossEntropy)(readers.token_losses)

PRECISE = (
    "--task translation --source-lang src --target-lang tgt --arch transformer "
    "--criterion precise_cross_entropy --share-all-embeddings --dropout 0"
).split() + TINY


def precision_without_gpu(patch: Any) -> None:
    """Let every precision setting of fairseq run on a CPU, as far as that goes.

    Flat fp16 parameters live on "the current device"; an overflow makes a zero
    on the GPU; ``--amp`` becomes bfloat16 autocast with a real loss scaler.
    """
    patch.setattr(torch.cuda, "current_device", lambda: None)
    patch.setattr(torch.Tensor, "cuda", lambda self, *a, **k: self)
    patch.setattr(torch.cuda.amp, "GradScaler", lambda **k: torch.amp.GradScaler("cpu", **k))
    patch.setattr(
        torch.cuda.amp,
        "autocast",
        lambda enabled=True: torch.autocast("cpu", torch.bfloat16, enabled=enabled),
    )


def softmax_in_float64() -> None:
    """Let fairseq's attention compute its softmax in the precision of its input.

    fairseq casts to float32. For worker processes; in a test use the fixture
    ``float64``, which undoes it.
    """
    utils.softmax = lambda x, dim, onnx_trace=False: x.softmax(dim)


def join_workers(
    data: Path, toy: Sequence[str], rank: int, count: int, port: int, *more: str
) -> tuple[str, ...]:
    """Make this process one of several gloo workers, which compute in float64 where asked to.

    Returns:
        The flags that its trainers need for that.
    """
    init = (
        *("--distributed-world-size", str(count), "--distributed-rank", str(rank)),
        *("--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"),
        *("--distributed-no-spawn", "--distributed-init-method", f"tcp://127.0.0.1:{port}"),
        *more,
    )
    distributed.distributed_init(config(data, *toy, *init))
    softmax_in_float64()
    return init
