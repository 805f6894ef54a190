"""``deltasam flags`` says what the parser takes."""

from __future__ import annotations

import builtins
import subprocess
import sys
import warnings
from typing import Any

import pytest

from deltasam_fairseq.cli import flags
from deltasam_fairseq.cli.main import main


@pytest.mark.fairseq
def test_own_flags_come_with_choices_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flags"]) == 0
    out = capsys.readouterr().out
    assert "--sam-method {none,sam,delta_sam,per_instance} (default: delta_sam)" in out
    assert "--sam-rho (default: 0.05)" in out
    assert "--adam-betas  adam, cpu_adam" in out


@pytest.mark.fairseq
def test_the_markdown_table_has_a_row_per_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flags", "--markdown"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "| flag | default | meaning |"
    assert len(rows) == 2 + len(flags.own_flags())


def test_a_bar_in_a_flag_or_its_meaning_ends_no_cell() -> None:
    row = flags.markdown([("--a {x|y}", "x|", "|w| and |v|")]).splitlines()[-1]
    assert row == r"| `--a {x\|y}` | `x\|` | \|w\| and \|v\| |"


@pytest.mark.fairseq
def test_nothing_is_said_before_the_flags() -> None:
    """Importing fairseq warns of old names in fairscale, and asks for tensorboardX."""
    command = [sys.executable, "-m", "deltasam_fairseq.cli", "flags"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("--optimizer delta_sam\n")
    assert done.stderr == ""


def test_other_warnings_reach_the_user(recwarn: pytest.WarningsRecorder) -> None:
    main(["recipes"])
    warnings.warn("of ours", FutureWarning, stacklevel=1)
    assert [str(found.message) for found in recwarn] == ["of ours"]


def test_without_fairseq_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("deltasam_fairseq.fairseq_plugin"):
            raise ImportError("No module named 'fairseq'")
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert main(["flags"]) == 2
    assert "No module named 'fairseq'" in capsys.readouterr().err
