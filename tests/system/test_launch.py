"""The launch lines of docs/workers.md, with two workers on a CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from tests.support import fairseq_data  # noqa: E402
from tests.support import fairseq_toys as toys  # noqa: E402
from tests.support.workers import free_port  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "workers.md").read_text(encoding="utf-8")

# Starts the command once for every task, as Slurm does, and fails if one fails.
SRUN = """#!/usr/bin/env bash
export SLURM_NTASKS=$2
shift 2
pids=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_PROCID=$task "$@" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || exit 1; done
"""


def launch_line(name: str, data: Path, save: Path) -> str:
    """Return a line of the page, for our data and flags."""
    found = re.search(rf"<!-- {name} -->\n```text\n(.*?)```", PAGE, re.DOTALL)
    assert found
    line = found[1].replace("\\\n", " ").replace("29500", str(free_port()))
    flags = toys.flags(toys.TRANSLATION, save=True)
    more = [*flags, "--max-epoch", "1", "--no-epoch-checkpoints", "--save-dir", str(save)]
    line = line.replace("DATA", " ".join([str(data), *more]))
    return line.replace("--user-dir user_dir", f"--user-dir {ROOT / 'user_dir'}")


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["torchrun", "slurm"])
def test_two_workers_train_together(tmp_path: Path, name: str, warm_python: str) -> None:
    data = fairseq_data.write_translation_data(tmp_path / "data")
    train = f'#!/bin/sh\nexec {warm_python} -m fairseq_cli.train "$@"\n'
    for program, text in (("srun", SRUN), ("fairseq-train", train)):
        (tmp_path / program).write_text(text)
        (tmp_path / program).chmod(0o755)
    places = [str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]]
    done = subprocess.run(
        ["bash", "-c", launch_line(name, data, tmp_path / "run")],
        env={**os.environ, "PATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-3000:]
    assert "training on 2 devices" in log, log[-3000:]
    saved = torch.load(tmp_path / "run" / "checkpoint_last.pt", weights_only=False)
    # 64 sentences in batches of 8 for each of two workers.
    assert saved["optimizer_history"][-1]["num_updates"] == 4


def test_torchrun_that_fairseq_ignores_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = toys.make_trainer(
        fairseq_data.write_translation_data(tmp_path), *toys.TRANSLATION, "--sam-method", "none"
    )
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"torchrun started 2 processes.*docs/workers\.md"):
        _ = trainer.optimizer
