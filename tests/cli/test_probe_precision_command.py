"""``deltasam analyse probe-precision``."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from deltasam_fairseq.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--random", "tiny", "--rho", "0.05,0.5", "--batches", "1", "--sentences", "4"),
    *("--tokens", "5", "--threads", "1"),
]


def test_a_record_is_shown_as_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyse", "probe-precision", *SMALL, "--json"]) == 0
    captured = capsys.readouterr()
    assert "batch 1 of 1" in captured.err
    record = json.loads(captured.out)
    assert record["command"].startswith("deltasam analyse probe-precision --random tiny --rho 0.05")
    assert record["not_run"] == ["fp32 with TF32"]
    path = tmp_path / "record.json"
    path.write_text(captured.out)
    assert main(["analyse", "probe-precision", "--show", str(path), str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("| fp32, bf16 autocast |") == 2
    # The recorded command gives the same numbers again.
    assert main([*record["command"].split()[1:-1]]) == 0
    assert shown.startswith(capsys.readouterr().out.rstrip("\n"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--random", "huge"], "unknown size 'huge'"),
        (["--random", "tiny", "--rho", "a"], "--rho must be numbers"),
        (["--random", "tiny", "--sentences", "1"], "--sentences must be at least 2"),
        (["--encoder", "nowhere"], "--encoder needs sentences"),
        (["--encoder", "nowhere", "--mrpc", "nowhere"], "nowhere has no config.json"),
        (["--show", "nowhere"], "nowhere: no such file"),
    ],
)
def test_what_it_cannot_do_is_said_in_a_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyse", "probe-precision", *arguments]) == 2
    assert f"deltasam: {message}" in capsys.readouterr().err


def test_the_script_keeps_one_record_per_model(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    fake = tmp_path / "deltasam"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {calls}\necho "{{}}"\n')
    fake.chmod(0o755)
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    script = scripts / "probe_precision.sh"
    script.write_text((ROOT / "scripts" / "probe_precision.sh").read_text())
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "DELTASAM_DATA": "data",
        "ENCODER": "all-MiniLM-L6-v2",
    }
    done = subprocess.run(
        ["sh", str(script), "abacus"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, wide, second, third = calls.read_text().splitlines()
    assert "--encoder all-MiniLM-L6-v2 --mrpc data/glue/MRPC/train.tsv" in first
    assert "--rho 0.1,0.3" in wide
    assert "--random roberta-large" in second
    assert "--random tiny" in third
    names = sorted(path.name for path in (scripts / "results").iterdir())
    assert [name.rpartition("_")[0] for name in names] == [
        "probe_precision_all-MiniLM-L6-v2_abacus",
        "probe_precision_roberta-large_abacus",
        "probe_precision_tiny_abacus",
        "probe_precision_wide-all-MiniLM-L6-v2_abacus",
    ]
