"""GLUE's recipes are the published commands with the paper's numbers."""

import shlex
from pathlib import Path
from statistics import fmean

import pytest

from deltasam_fairseq.cli.main import main
from deltasam_fairseq.recipes.command import flag_values
from deltasam_fairseq.recipes.glue import RECIPES
from deltasam_fairseq.recipes.published import TABLE_1, TABLE_2, TABLE_5, Rows, published

# fairseq's examples/roberta/README.glue.md, before it went over to hydra; RTE.
PUBLISHED = """
--restore-file models/roberta_large/model.pt --max-positions 512 --batch-size 16
--max-tokens 4400 --task sentence_prediction --reset-optimizer --reset-dataloader --reset-meters
--required-batch-size-multiple 1 --init-token 0 --separator-token 2 --arch roberta_large
--criterion sentence_prediction --num-classes 2 --dropout 0.1 --attention-dropout 0.1
--weight-decay 0.1 --optimizer adam --adam-betas "(0.9, 0.98)" --adam-eps 1e-06
--clip-norm 0.0 --lr-scheduler polynomial_decay --lr 2e-05 --total-num-update 2036
--warmup-updates 122 --fp16 --fp16-init-scale 4 --threshold-loss-scale 1
--fp16-scale-window 128 --max-epoch 10 --find-unused-parameters
--best-checkpoint-metric accuracy --maximize-best-checkpoint-metric
"""
# Ours: the optimizer around adam with the paper's rho and eta, and what names and logs the run.
OURS = {
    "optimizer": "delta_sam",
    "sam-inner": "adam",
    "sam-method": "delta_sam",
    "sam-rho": "0.02",
    "sam-eta": "0.0005",
    "seed": "1",
    "save-dir": "runs/glue/rte/roberta_large/delta_sam-seed1/checkpoints",
    "no-epoch-checkpoints": "",
    "log-format": "json",
    "log-interval": "20",
}
# MNLI, QNLI, QQP, RTE, SST-2, MRPC, CoLA, STS-B of the same README.
ROBERTA = {
    "mnli": (3, "1e-05", 32, 123873, 7432),
    "qnli": (2, "1e-05", 32, 33112, 1986),
    "qqp": (2, "1e-05", 32, 113272, 28318),
    "rte": (2, "2e-05", 16, 2036, 122),
    "sst-2": (2, "1e-05", 32, 20935, 1256),
    "mrpc": (2, "1e-05", 16, 2296, 137),
    "cola": (2, "1e-05", 16, 5336, 320),
    "sts-b": (1, "2e-05", 16, 3598, 214),
}


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    assert main(["train", *arguments, "--dry-run"]) == 0
    return flag_values(shlex.split(capsys.readouterr().out))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_rte_is_the_published_command_with_the_papers_rho_and_eta(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = dry_run(capsys, "glue/rte", "--model", "roberta_large", "--method", "delta_sam")
    del found["user-dir"]
    assert found == flag_values(shlex.split(PUBLISHED)) | OURS


def test_a_small_model_trains_on_a_gpu_that_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = ("glue/rte", "--model", "minilm_l6")
    assert "cpu" in dry_run(capsys, *small)
    found = dry_run(capsys, *small, "--gpus", "1")
    assert "cpu" not in found
    assert found["distributed-world-size"] == "1"


@pytest.mark.parametrize("task", ROBERTA)
def test_every_task_has_the_numbers_of_the_readme(task: str) -> None:
    flags = RECIPES[task].with_model("roberta_large").flags
    names = ("num-classes", "lr", "batch-size", "total-num-update", "warmup-updates")
    assert tuple(flags[name] for name in names) == ROBERTA[task]


@pytest.mark.parametrize(
    ("half", "model"), [("bert_base", "bert_base_cased"), ("roberta_large",) * 2]
)
@pytest.mark.parametrize("task", ROBERTA)
def test_methods_have_table_5(half: str, model: str, task: str) -> None:
    methods = RECIPES[task].with_model(model).methods
    rho, eta = TABLE_5[half][task]
    assert methods["sam"] == {"sam-rho": rho}
    assert methods["delta_sam"] == {"sam-rho": rho, "sam-eta": eta}
    assert rho in RECIPES[task].grid["rho"]
    assert eta in RECIPES[task].grid["eta"]


def test_per_instance_has_twice_the_epochs() -> None:
    recipe = RECIPES["mrpc"].with_model("bert_base_cased")
    twice = recipe.methods["per_instance"]
    for name in ("total-num-update", "warmup-updates", "max-update"):
        assert twice[name] == 2 * int(recipe.flags[name])


def test_regression_and_matthews_are_our_criterions() -> None:
    cola, stsb, rte = (RECIPES[name].flags for name in ("cola", "sts-b", "rte"))
    assert cola["sentence-metrics"] == "matthews,accuracy"
    assert cola["best-checkpoint-metric"] == "matthews"
    assert stsb["regression-target"] is True
    assert stsb["best-checkpoint-metric"] == "pearson"
    assert rte["criterion"] == "sentence_prediction"


def test_the_random_control_is_delta_sam_with_another_estimator(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("glue/rte", "--model", "bert_base_cased", "--method")
    control, method = (dry_run(capsys, *arguments, name) for name in ("random", "delta_sam"))
    assert control.pop("sam-estimator") == "random"
    for flags in (control, method):
        del flags["save-dir"]
    assert control == method


@pytest.mark.parametrize(
    ("table", "columns"),
    [*((half, 8) for half in TABLE_1.values()), *((half, 7) for half in TABLE_2.values())],
)
def test_averages_are_those_of_the_cells(table: Rows, columns: int) -> None:
    for name, row in table.items():
        assert len(row.cells) == columns
        if row.average != "-":
            assert float(row.average) == pytest.approx(fmean(map(float, row.cells)), abs=0.06), name


def test_published_numbers_are_in_the_recipe() -> None:
    assert RECIPES["rte"].models["bert_base_cased"].published["δ-SAM"] == "72.2"
    assert "R3F" not in published("roberta_large", "sts-b")
    assert RECIPES["rte"].models["minilm_l6"].published == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["glue/rte", "--dry-run"], "give --model, one of roberta_large"),
        (["text", "--method", "samm"], "unknown method 'samm'; did you mean 'sam'?"),
        (["glue/rte", "--model", "bert"], "has no model 'bert'"),
        (["glue/rte", "--model", "roberta_base"], "data/glue/rte/roberta_base is not a finished"),
        (["text", "--dry-run"], "needs --data DIR and --save-dir RUN"),
    ],
)
def test_what_is_missing_is_said(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err
