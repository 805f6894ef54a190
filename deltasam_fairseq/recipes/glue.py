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


class _FreeLB(NamedTuple):
    """The noise of FreeLB: number of passes, length of a step, first norm, largest norm."""

    steps: int
    lr: float
    init: float
    max_norm: float


# launch/FreeLB of its authors' code, for RoBERTa-large, whose adv_steps is one less than the
# passes; RTE as in their issue 11. QNLI and QQP have other values for fp32.
_FREELB = {
    "mnli": _FreeLB(3, 0.1, 0.1, 0.3),
    "qnli": _FreeLB(3, 0.1, 0.2, 0.2),
    "qqp": _FreeLB(3, 0.15, 0.32, 0.62),
    "rte": _FreeLB(4, 0.03, 0.16, 0.14),
    "sst-2": _FreeLB(3, 0.1, 1.0, 0.6),
    "mrpc": _FreeLB(4, 0.04, 0.64, 0.4),
    "cola": _FreeLB(4, 0.025, 0.4, 0.3),
    "sts-b": _FreeLB(4, 0.1, 0.16, 0.28),
}
# Where it differs from fairseq's command.
_FREELB_LR = {"rte": "1e-05", "mrpc": "5e-06"}


class _R3F(NamedTuple):
    """The schedule of R3F for RoBERTa-large, from its appendix."""

    lr: str
    batch: int
    updates: int


_R3F_SCHEDULES = {
    "mnli": _R3F("5e-06", 8, 123873),
    "qnli": _R3F("5e-06", 8, 33112),
    "qqp": _R3F("5e-06", 32, 113272),
    "sst-2": _R3F("5e-06", 32, 20935),
    "rte": _R3F("1e-05", 8, 3120),
    "mrpc": _R3F("1e-05", 16, 2296),
    "cola": _R3F("1e-05", 16, 5336),
}
# Of the head; the appendix of SMART, in which the others have 0.1.
_SMART_DROPOUT = {"mnli": 0.3, "cola": 0.05}

_HALF: Flags = {
    "fp16": True,
    "fp16-init-scale": 4,
    "threshold-loss-scale": 1,
    "fp16-scale-window": 128,
}
_RIVALS_NOTES = (
    "rdrop: the grid of alpha is published, which task has which is not; 1 is the default of its "
    "code for fairseq. Its numbers for BERT come from code with --rdrop-kl-reduction sum and "
    "alpha 0.5. lr, weight decay and batches of RoBERTa are its README's.",
    "r3f: lr, batches, updates, weight decay and grid are published for RoBERTa-large, but not "
    "for STS-B, and not which task has which lambda and noise: 0.7 on RTE is its README's, 1 its "
    "code's default. Half precision rounds noise of 1e-5 away: add --precision fp32.",
    "smart: noise, grid of lambda, mu and dropout of the head are published, which task has "
    "which lambda, lr and batch is not: those are the recipe's. Published values of RTE, MRPC and "
    "STS-B begin from a model trained on MNLI.",
    "freelb: all values are published for RoBERTa-large, most for fp32 (--precision fp32); "
    "batches of 33 on MNLI are 32 here, 5536 updates on CoLA (a slip, it seems) 5336.",
    "BERT-base and MiniLM have the same terms, with the model's own lr, batches and updates: of "
    "the rivals R-Drop and SMART alone have numbers for BERT-base, and none has any for MiniLM.",
)
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


def _rivals(task: str) -> dict[str, Flags]:
    """What the rivals' papers and code say of their own terms, whatever the model."""
    noise = _FREELB[task]
    return {
        "rdrop": {"regularizer-weight": 1.0, "rdrop-kl-reduction": "mean"},
        "r3f": {
            # Its README's for RTE, its code's default for the others.
            "regularizer-weight": 0.7 if task == "rte" else 1.0,
            "r3f-noise": "uniform",
            "r3f-eps": "1e-05",
        },
        "smart": {
            "regularizer-weight": 1.0,
            "smart-eps": "1e-05",
            "smart-sigma": "1e-05",
            "smart-step": 0.001,
            "smart-steps": 1,
            "clip-norm": 1.0,
            "pooler-dropout": _SMART_DROPOUT.get(task, 0.1),
        },
        "freelb": {
            "freelb-steps": noise.steps,
            "freelb-lr": noise.lr,
            "freelb-init": noise.init,
            "freelb-max-norm": noise.max_norm,
            "freelb-norm": "l2",
        },
    }


def _rivals_of_roberta(task: str, flags: Flags) -> dict[str, Flags]:
    """Add how the rivals trained RoBERTa-large, where that differs from fairseq's command."""
    trained: dict[str, Flags] = {
        "rdrop": {"lr": "1e-05", "weight-decay": 0.01, "batch-size": _NUMBERS[task].bert_batch},
        "freelb": {
            "adam-betas": "(0.9, 0.999)",
            **({"lr": _FREELB_LR[task]} if task in _FREELB_LR else {}),
        },
    }
    twice: dict[str, Flags] = {}
    if task in _R3F_SCHEDULES:
        lr, batch, updates = _R3F_SCHEDULES[task]
        length: Flags = {"total-num-update": updates, "warmup-updates": int(0.06 * updates)}
        trained["r3f"] = {"lr": lr, "batch-size": batch, "weight-decay": 0.01, **length}
        # The recipe stops after ten epochs; of smaller batches these are more updates.
        trained["r3f"] = {**trained["r3f"], "max-update": updates}
        twice["per_instance+r3f"] = {
            **{name: 2 * int(value) for name, value in length.items()},
            "max-update": 2 * updates,
        }
    own = {
        name: {**one, **{k: v for k, v in trained.get(name, {}).items() if flags.get(k) != v}}
        for name, one in _rivals(task).items()
    }
    return {**own, **twice}


def _roberta(task: str, arch: str) -> Model:
    numbers = _NUMBERS[task]
    stop: Flags = {"max-epoch": 10}
    flags: Flags = {
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
    }
    return Model(
        description=f"{arch.replace('_', '-')}; the command of fairseq's README",
        flags=flags,
        methods={
            **_methods(ROBERTA, task, numbers.updates, numbers.warmup, stop),
            **_rivals_of_roberta(task, flags),
        },
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
        methods={
            **_methods(BERT, task, numbers.updates, numbers.warmup, stop),
            **_rivals(task),
        },
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
        methods={**_methods(BERT, task, updates, warmup, stop), **_rivals(task)},
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
        grid={
            "rho": (0.01, 0.02, 0.05),
            "eta": (1e-4, 2e-4, 5e-4, 1e-3),
            "rdrop-alpha": (0.1, 0.5, 1.0),
            "r3f-lambda": (0.1, 0.5, 1.0, 5.0),
            "smart-lambda": (1.0, 3.0, 5.0),
        },
        notes=(
            "The paper says that it took R-Drop's values. For RoBERTa those are this command with "
            "another weight decay (0.01) and lr 1e-05, and batches of 8 on RTE.",
            "The paper reports the best of five seeds on the validation set (Table 1).",
            *_RIVALS_NOTES,
        ),
    )


RECIPES = {name: _recipe(name) for name in _PAPERS}
