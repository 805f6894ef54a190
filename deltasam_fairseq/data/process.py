"""Running fairseq's programs as processes, with a log and live lines."""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltasam_fairseq.errors import UserError

#: A function that is told what happens, line by line.
Say = Callable[[str], None]

# Seconds in which an interrupted program may end by itself.
_PATIENCE = 10
# A value or a flag that was refused: what stands before it in a log is a traceback or a usage.
_VERDICT = re.compile(r"(ValueError|\S+UserError|\S+: error): ")


def fairseq_program(name: str) -> list[str]:
    """Return the start of a command that runs a program of fairseq, which needs no ``PATH``."""
    return [sys.executable, "-m", f"fairseq_cli.{name}"]


def require_fairseq() -> None:
    """Check that fairseq is installed, without importing it."""
    if importlib.util.find_spec("fairseq_cli") is None:
        raise UserError(
            "fairseq is not installed for this Python; one of: pip install "
            "'deltasam_fairseq[fairseq]' (Python 3.10 to 3.13), pip install fairseq (3.10)"
        )


def run_logged(
    command: Sequence[str],
    log: Path,
    *,
    append: bool = False,
    environment: Mapping[str, str] | None = None,
    inherited: Sequence[int] = (),
    on_line: Say = lambda line: None,
) -> int:
    """Run a program, write all it says to a file while it says it, and return its status.

    Args:
        command: Program and arguments.
        log: File for its output and its errors, interleaved.
        append: Whether to keep what the file holds.
        environment: Variables beside those of this process.
        inherited: File descriptors that the program keeps open.
        on_line: Called with every line, without the newline.

    Returns:
        The exit status.

    Raises:
        KeyboardInterrupt: After Ctrl-C, once the program has ended.
    """
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
    with (
        log.open("a" if append else "w", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=variables,
            pass_fds=inherited,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                file.write(line)
                file.flush()
                on_line(line.rstrip("\n"))
        except KeyboardInterrupt:
            file.write(_last_words(process))
            raise
    return process.returncode


def run_program(
    name: str, command: Sequence[str], log: Path, *, append: bool = False, **how: Any
) -> None:
    """Run a program as :func:`run_logged` does; a failure is an error that quotes its log."""
    status = run_logged(command, log, append=append, **how)
    if status:
        raise UserError(failure(name, status, log))


def _last_words(process: subprocess.Popen[str]) -> str:
    """Wait for the end of a program that a terminal's Ctrl-C has reached as well, or end it."""
    try:
        return process.communicate(timeout=_PATIENCE)[0]
    except subprocess.TimeoutExpired:
        process.terminate()
        return process.communicate()[0]


def processor_seconds() -> float:
    """Return the seconds, user and system, that programs of this process took until they ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def failure(program: str, status: int, log: Path, *, lines: int = 12) -> str:
    """Describe how a program failed: by its message about a flag, or the last lines of its log."""
    tail = log.read_text(encoding="utf-8").splitlines()[-lines:]
    verdicts = [number for number, line in enumerate(tail) if _VERDICT.match(line)]
    tail = tail[verdicts[-1] if verdicts else 0 :]
    quoted = "\n".join(f"  | {line[:300]}" for line in tail)
    return f"{program} ended with status {status}; the end of {log}:\n{quoted}"
