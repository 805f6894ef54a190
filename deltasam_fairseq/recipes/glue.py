"""The eight GLUE tasks, for RoBERTa, BERT and a BERT small enough for a CPU."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from deltasam_fairseq.data.glue import GLUE
from deltasam_fairseq.recipes.base import Model, Recipe
from deltasam_fairseq.recipes.kinds.labelled_sentences import LabelledSentences
from deltasam_fairseq.recipes.methods import Flags
from deltasam_fairseq.recipes.published import BERT, ROBERTA, TABLE_5, published


class _Numbers(NamedTuple):
    """What fairseq's README has per task, and the batch size of R-Drop's BERT."""

    lr: str
    batch: int
    updates: int
    warmup: int
    bert_batch: int


# examples/roberta/README.glue.md and config/finetuning of fairseq; R-Drop's README.
_NUMBERS = {
    "mnli": _Numbers("1e-05", 32, 123873, 7432, 32),
    "qnli": _Numbers("1e-05", 32, 33112, 1986, 32),
    "qqp": _Numbers("1e-05", 32, 113272, 28318, 32),
    "rte": _Numbers("2e-05", 16, 2036, 122, 8),
    "sst-2": _Numbers("1e-05", 32, 20935, 1256, 32),
    "mrpc": _Numbers("1e-05", 16, 2296, 137, 16),
    "cola": _Numbers("1e-05", 16, 5336, 320, 16),
    "sts-b": _Numbers("2e-05", 16, 3598, 214, 16),
}
_PAPERS = tuple(_NUMBERS)

#: Of the first start of every fine-tuning.
START: Flags = {"reset-optimizer": True, "reset-dataloader": True, "reset-meters": True}
#: Of every task on sentences, with our optimizer in the place of adam, and how to log.
COMMON: Flags = {
    "task": "sentence_prediction",
    "required-batch-size-multiple": 1,
    "init-token": 0,
    "optimizer": "delta_sam",
    "sam-inner": "adam",
    "adam-betas": "(0.9, 0.98)",
    "adam-eps": "1e-06",
    "lr-scheduler": "polynomial_decay",
    "dropout": 0.1,
    "attention-dropout": 0.1,
    "no-epoch-checkpoints": True,
    "log-format": "json",
    "log-interval": 20,
}
_HALF: Flags = {
    "fp16": True,
    "fp16-init-scale": 4,
    "threshold-loss-scale": 1,
    "fp16-scale-window": 128,
}
_ON_CPU = "--model minilm_l6 is small enough for a CPU"
_MINILM_EPOCHS = 3
_MINILM_BATCH = 16


def _criterion(task: str) -> Flags:
    """Take fairseq's where it logs the paper's metric, else ours."""
    found = GLUE[task]
    flags: Flags = {
        "num-classes": len(found.classes) or 1,
        "best-checkpoint-metric": found.metrics[0],
        "maximize-best-checkpoint-metric": True,
    }
    if task == "mnli":
        flags = {**flags, "valid-subset": "valid,valid1"}
    if found.metrics[0] == "accuracy":
        return {**flags, "criterion": "sentence_prediction"}
    return {
        **flags,
        "criterion": "deltasam_sentence_prediction",
        "sentence-metrics": ",".join(found.metrics),
        "regression-target": found.is_regression,
    }


def _methods(model: str, task: str, updates: int, warmup: int, stop: Flags) -> dict[str, Flags]:
    """Table 5; per-instance perturbation ran for twice the epochs (appendix A)."""
    rho, eta = TABLE_5[model][task]
    twice: Flags = {
        "total-num-update": 2 * updates,
        "warmup-updates": 2 * warmup,
        **{name: 2 * int(value) for name, value in stop.items()},
    }
    return {
        "sam": {"sam-rho": rho},
        "delta_sam": {"sam-rho": rho, "sam-eta": eta},
        "per_instance": {"sam-rho": rho, **twice},
    }


def _roberta(task: str, arch: str) -> Model:
    numbers = _NUMBERS[task]
    stop: Flags = {"max-epoch": 10}
    return Model(
        description=f"{arch.replace('_', '-')}; the command of fairseq's README",
        flags={
            "max-positions": 512,
            "max-tokens": 4400,
            "separator-token": 2,
            "arch": arch,
            "batch-size": numbers.batch,
            "weight-decay": 0.1,
            "clip-norm": 0.0,
            "lr": numbers.lr,
            "total-num-update": numbers.updates,
            "warmup-updates": numbers.warmup,
            **_HALF,
            **stop,
            "find-unused-parameters": True,
        },
        methods=_methods(ROBERTA, task, numbers.updates, numbers.warmup, stop),
        published=published(ROBERTA, task) if arch == ROBERTA else {},
        on_cpu=_ON_CPU,
    )


def _bert(task: str, name: str) -> Model:
    numbers = _NUMBERS[task]
    stop: Flags = {"max-update": numbers.updates}
    return Model(
        description=f"{name.replace('_', '-')}; the values of R-Drop, which the paper took over",
        flags={
            "max-positions": 512,
            "arch": "deltasam_bert_base",
            "batch-size": numbers.bert_batch,
            "weight-decay": 0.01,
            "clip-norm": 1.0,
            "lr": "1e-05",
            "total-num-update": numbers.updates,
            "warmup-updates": numbers.warmup,
            **_HALF,
            **stop,
        },
        methods=_methods(BERT, task, numbers.updates, numbers.warmup, stop),
        max_tokens=128,
        published=published(BERT, task),
        on_cpu=_ON_CPU,
    )


def _minilm(task: str) -> Model:
    rows = GLUE[task].split("train").counts[0]
    updates = _MINILM_EPOCHS * ceil(rows / _MINILM_BATCH)
    warmup = round(0.06 * updates)
    stop: Flags = {"max-epoch": _MINILM_EPOCHS}
    return Model(
        description="all-MiniLM-L6-v2, a BERT of 22.7 M parameters, on a CPU; not in the paper",
        flags={
            "max-positions": 512,
            "arch": "deltasam_bert_minilm_l6",
            "batch-size": _MINILM_BATCH,
            "weight-decay": 0.01,
            "clip-norm": 1.0,
            "lr": "5e-05",
            "total-num-update": updates,
            "warmup-updates": warmup,
            **stop,
            "cpu": True,
            "num-workers": 0,
        },
        methods=_methods(BERT, task, updates, warmup, stop),
        max_tokens=128,
    )


def _recipe(name: str) -> Recipe:
    task = GLUE[name]
    kind = "scores pairs" if task.is_regression else f"{len(task.classes)} classes"
    return Recipe(
        name=f"glue/{name}",
        version=1,
        description=f"{task.name} of GLUE: {kind}, {task.metrics[0]}",
        prepare=f"deltasam prepare glue/{name} --glue DIR --model MODEL",
        flags={**COMMON, **_criterion(name)},
        metric=task.metrics[0],
        start=START,
        kind=LabelledSentences(task),
        models={
            "roberta_large": _roberta(name, "roberta_large"),
            "roberta_base": _roberta(name, "roberta_base"),
            "bert_base_cased": _bert(name, "bert_base_cased"),
            "bert_base_uncased": _bert(name, "bert_base_uncased"),
            "minilm_l6": _minilm(name),
        },
        grid={"rho": (0.01, 0.02, 0.05), "eta": (1e-4, 2e-4, 5e-4, 1e-3)},
        notes=(
            "The paper says that it took R-Drop's values. For RoBERTa those are this command with "
            "another weight decay (0.01) and lr 1e-05, and batches of 8 on RTE.",
            "The paper reports the best of five seeds on the validation set (Table 1).",
        ),
    )


RECIPES = {name: _recipe(name) for name in _PAPERS}
