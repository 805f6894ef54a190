"""The choices of scripts/demo.sh, with a program that stands in for deltasam."""

import subprocess
from pathlib import Path

import pytest

from tests.support.scripts import ROOT, calls, run_script, write_run, write_stand_ins


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_stand_ins(tmp_path, "deltasam", "python")


def demo(
    folder: Path, *arguments: str, state: str = "", **wishes: str
) -> subprocess.CompletedProcess[str]:
    if state:
        write_run(folder / "demo" / "runs" / "delta_sam", state)
    return run_script("demo.sh", folder, *arguments, **wishes)


def test_a_first_run_goes_from_text_to_table(folder: Path) -> None:
    done = demo(folder)
    assert done.returncode == 0, done.stderr
    assert calls(done) == [
        "-m examples.docstrings.prepare --out demo/text",
        "prepare text --train-source demo/text/train.source --train-target demo/text/train.target "
        "--valid-source demo/text/valid.source --valid-target demo/text/valid.target "
        "--test-source demo/text/test.source --test-target demo/text/test.target "
        "--out demo/data --vocab-size 3000 --max-source-tokens 48 --max-target-tokens 32",
        f"train docstrings --recipe-file {ROOT}/examples/docstrings/recipe.py --data demo/data "
        "--save-dir demo/runs/delta_sam --method delta_sam",
        "evaluate demo/runs/delta_sam",
        "analyse curve demo/runs/delta_sam --out demo/curve-delta_sam.png",
        "table demo/runs/none demo/runs/sam demo/runs/delta_sam",
    ]


@pytest.mark.parametrize(
    ("arguments", "wishes"), [(["--method", "sam"], {}), ([], {"METHOD": "sam"})]
)
def test_the_method_is_one_flag_away(
    folder: Path, arguments: list[str], wishes: dict[str, str]
) -> None:
    assert calls(demo(folder, *arguments, **wishes))[2].endswith("runs/sam --method sam")


def test_per_instance_gets_a_row_of_its_own(folder: Path) -> None:
    assert calls(demo(folder, METHOD="per_instance"))[-1].endswith("runs/per_instance")


def test_a_finished_run_is_reused(folder: Path) -> None:
    done = demo(folder, state="finished")
    made = [call.split()[0] for call in calls(done)]
    assert made == ["-m", "prepare", "evaluate", "analyse", "table"]
    assert "RESTART=1 moves it aside and starts over" in done.stdout


def test_an_unfinished_run_needs_a_choice(folder: Path) -> None:
    done = demo(folder, state="unfinished")
    assert done.returncode == 2
    assert "set CONTINUE=1 to go on with it, or RESTART=1 to move it aside" in done.stderr
    assert calls(done) == []


@pytest.mark.parametrize(
    ("wish", "train", "evaluate"),
    [
        ("CONTINUE", "--resume", "evaluate demo/runs/delta_sam --force"),
        ("RESTART", "--restart", "evaluate demo/runs/delta_sam"),
    ],
)
def test_a_choice_is_carried_out(folder: Path, wish: str, train: str, evaluate: str) -> None:
    made = calls(demo(folder, state="unfinished", **{wish: "1"}))
    assert made[2].endswith(train)
    assert made[3] == evaluate


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metod", "sam"], "unknown argument --metod; known: --method NAME"),
        (["--method"], "value"),
    ],
)
def test_wrong_usage(folder: Path, arguments: list[str], message: str) -> None:
    done = demo(folder, *arguments)
    assert done.returncode != 0
    assert message in done.stderr


def test_without_deltasam_the_script_says_where_to_get_it(folder: Path) -> None:
    done = demo(folder, DELTASAM_BIN=str(folder), PATH="/usr/bin:/bin")
    assert done.returncode == 2
    assert "no deltasam on PATH; use 'make demo'" in done.stderr


def test_a_failing_step_stops_the_script(folder: Path) -> None:
    (folder / "bin" / "deltasam").write_text('#!/bin/sh\necho "CALL $*"\n[ "$1" != train ]\n')
    done = demo(folder)
    assert done.returncode == 1
    assert [call.split()[0] for call in calls(done)] == ["-m", "prepare", "train"]
