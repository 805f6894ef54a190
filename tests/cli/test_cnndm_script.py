"""The choices of scripts/cnndm.sh, with a stand-in for deltasam; and docs/cnndm.md."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from deltasam_fairseq.analysis.rouge_tables import table_3
from deltasam_fairseq.analysis.table import as_markdown
from deltasam_fairseq.cli.main import build_parser
from tests.support.scripts import ROOT, calls, run_script, write_run, write_stand_ins

DOCUMENT = (ROOT / "docs" / "cnndm.md").read_text(encoding="utf-8")
FULL = {
    "STORIES": "cnn/stories dailymail/stories",
    "URL_LISTS": "url_lists",
    "GPT2": "gpt2",
    "BART": "bart.large/model.pt",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_stand_ins(tmp_path, "deltasam")


def script(
    folder: Path, size: str, *, state: str = "", **wishes: str
) -> subprocess.CompletedProcess[str]:
    if state:
        out = "cnndm" if size == "full" else "cnndm-small"
        write_run(folder / out / "runs" / "delta_sam-1", state)
    return run_script("cnndm.sh", folder, *([size] if size else []), **wishes)


def test_the_full_run_is_the_documented_one(folder: Path) -> None:
    done = script(folder, "full", GPUS="8", **FULL)
    assert done.returncode == 0, done.stderr
    made = calls(done)
    assert len(made) == 5
    documented = " ".join(DOCUMENT.replace("\\\n", " ").split())
    for call in (made[0], made[1], made[3]):
        assert f"deltasam {call}" in documented
    assert made[2] == (
        "train cnndm --data cnndm/data --bart cnndm/bart --save-dir cnndm/runs/delta_sam-1 "
        "--method delta_sam --seed 1 --gpus 8"
    )
    assert f"deltasam {made[2]}" in documented
    assert made[4] == "table --published cnndm cnndm/runs/delta_sam-1"


def test_the_small_run_has_the_same_steps(folder: Path) -> None:
    small = calls(script(folder, "small", DELTASAM_DATA="d", METHOD="sam", SEED="3"))
    full = calls(script(folder, "full", **FULL))
    assert [call.split()[:2] for call in small] == [
        *(["prepare", "cnndm"], ["prepare", "bart"], ["train", "cnndm-small"]),
        *(["evaluate", "cnndm-small/runs/sam-3"], ["table", "--published"]),
    ]
    assert [call.split()[0] for call in small] == [call.split()[0] for call in full]


def test_slurm_is_passed_on(folder: Path) -> None:
    assert calls(script(folder, "full", SLURM="1", **FULL))[2].endswith("--gpus 1 --slurm")


@pytest.mark.parametrize(
    ("state", "wishes", "ending"),
    [
        ("unfinished", {"CONTINUE": "1"}, "--resume"),
        ("unfinished", {"RESTART": "1"}, "--restart"),
        ("finished", {"RESTART": "1"}, "--restart"),
    ],
)
def test_an_earlier_run_needs_a_choice(
    folder: Path, state: str, wishes: dict[str, str], ending: str
) -> None:
    done = script(folder, "small", state=state, DELTASAM_DATA="d", **wishes)
    assert calls(done)[2].endswith(f"--seed 1 {ending}")
    assert calls(done)[3].endswith("--force") == (ending == "--resume")


def test_an_unfinished_run_is_not_continued_unasked(folder: Path) -> None:
    done = script(folder, "small", state="unfinished", DELTASAM_DATA="d")
    assert done.returncode == 2
    assert calls(done) == []
    assert "set CONTINUE=1 to go on with it" in done.stderr


def test_a_finished_run_is_used_again(folder: Path) -> None:
    done = script(folder, "small", state="finished", DELTASAM_DATA="d")
    assert [call.split()[0] for call in calls(done)] == ["prepare", "prepare", "evaluate", "table"]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("", "say full or small"),
        ("medium", "unknown size medium; known: full, small"),
        ("full", "the folders of .story files"),
        ("small", "the folder of downloaded data"),
    ],
)
def test_what_is_missing_is_said(folder: Path, size: str, message: str) -> None:
    done = script(folder, size)
    assert done.returncode != 0
    assert message in done.stderr
    assert calls(done) == []


def documented_commands() -> list[str]:
    blocks = re.findall(r"```text\n(.*?)```", DOCUMENT, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("deltasam ")]


@pytest.mark.parametrize("line", documented_commands())
def test_every_documented_command_is_understood(line: str) -> None:
    arguments = shlex.split(line)[1:]
    assert build_parser(arguments[0]).parse_args(arguments)


def test_the_documented_table_is_what_the_command_prints() -> None:
    table = as_markdown(table_3([], "test")).partition("\n\n")[0]
    assert table in DOCUMENT
