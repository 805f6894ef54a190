"""The shell scripts of ``scripts/``, run with programs that write down how they are called."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: What tests set themselves, whatever the environment has.
WISHES = (
    "METHOD SEED GPUS SLURM CONTINUE RESTART OUT DEMO DELTASAM_DATA OMP_WAIT_POLICY "
    "STORIES URL_LISTS GPT2 BART"
).split()


def write_stand_ins(folder: Path, *names: str) -> Path:
    (folder / "bin").mkdir()
    for name in names:
        (folder / "bin" / name).write_text('#!/bin/sh\necho "CALL $*"\n')
        (folder / "bin" / name).chmod(0o755)
    return folder


def write_run(run: Path, state: str) -> None:
    """Write what a run leaves that is ``finished`` or ``unfinished``."""
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "checkpoint_last.pt").touch()
    (run / "run.json").write_text(f'{{"finished": {str(state == "finished").lower()}}}\n')


def run_script(
    name: str, folder: Path, *arguments: str, **wishes: str
) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder with stand-ins, with environment variables as wishes."""
    environment = {name: value for name, value in os.environ.items() if name not in WISHES}
    environment |= {"DELTASAM_BIN": str(folder / "bin"), **wishes}
    command = [str(ROOT / "scripts" / name), *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def calls(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line[5:] for line in done.stdout.splitlines() if line.startswith("CALL ")]
