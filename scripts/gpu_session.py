"""The time that scripts/gpu.py has, the programs that it runs, and where results go.

Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ENDING = 8.0  # seconds before the end in which nothing new begins


class Ended(BaseException):
    """Somebody wants us to stop; no error of one part, after which the next one could run."""


class Session:
    """The time that there is, and where results go.

    Args:
        out: Their folder.
        minutes: From now on.
        python: The interpreter that has torch.
    """

    def __init__(self, out: Path, minutes: float, python: str) -> None:
        self.began = time.monotonic()
        self.end = self.began + 60 * minutes - ENDING
        self.out = out
        self.python = python
        self.work = Path(tempfile.mkdtemp(prefix="deltasam-gpu-"))
        self.variables = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.running: list[subprocess.Popen[bytes]] = []
        self.failures = 0
        out.mkdir(parents=True, exist_ok=True)
        self.log = (out / "log.txt").open("ab", buffering=0)
        signal.signal(signal.SIGTERM, stop)

    @property
    def deltasam(self) -> list[str]:
        """The start of a command."""
        return [self.python, "-W", "ignore", "-m", "deltasam_fairseq.cli"]

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def keep(self, step: str, **found: Any) -> None:
        """Write a result down, and the summary anew; ``failed`` says what was wrong."""
        self.failures += "failed" in found
        line = {"step": step, "at": round(time.monotonic() - self.began, 1), **found}
        with (self.out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        subprocess.run([sys.executable, str(HERE / "gpu_report.py"), str(self.out)], check=False)
        said = {k: v for k, v in found.items() if not isinstance(v, dict | list)}
        print(f"[{line['at']:6.1f} s] {step}: {said}", flush=True)

    def start(
        self, command: Sequence[str], folder: Path, output: Any = None, **variables: str
    ) -> subprocess.Popen[bytes]:
        """Start a program in a process group of its own."""
        self.log.write(f"\n$ {' '.join(command)}\n".encode())
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output or self.log,
            stderr=self.log,
            env={**os.environ, **self.variables, **variables},
            start_new_session=True,
        )
        self.running.append(process)
        return process

    def run(
        self, command: Sequence[str], folder: Path, limit: float, output: Any = None
    ) -> int | None:
        """Run a program to its end.

        Args:
            command: Program and arguments.
            folder: Where.
            limit: Seconds that it may take.
            output: File for what it prints; the log otherwise.

        Returns:
            Its status, or none if it was still running.
        """
        process = self.start(command, folder, output)
        try:
            return process.wait(timeout=max(0.0, min(limit, self.left)))
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.kill(process)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End a program and all that it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process in self.running:
            self.running.remove(process)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Keep an error of a step from ending the steps after it."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  (lose nothing: the next step may still work)
            self.keep(name, failed=f"{type(error).__name__}: {error}")
        finally:
            for process in list(self.running):
                self.kill(process)


def stop(*_: object) -> None:
    """Answer SIGTERM."""
    raise Ended
