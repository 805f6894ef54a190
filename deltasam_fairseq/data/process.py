"""Running fairseq's programs as processes, with a log and live lines."""

from __future__ import annotations

import importlib.util
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deltasam_fairseq.errors import UserError

# Seconds in which an interrupted program may end by itself.
_PATIENCE = 10


def fairseq_program(name: str) -> list[str]:
    """Return the start of a command that runs one of fairseq's programs.

    Args:
        name: ``preprocess``, ``train`` or ``generate``.

    Returns:
        This Python and the module to run, so that the program needs not be on ``PATH``.
    """
    return [sys.executable, "-m", f"fairseq_cli.{name}"]


def require_fairseq() -> None:
    """Check that fairseq is installed, without importing it.

    Raises:
        UserError: If it is not.
    """
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
    on_line: Callable[[str], None] = lambda line: None,
) -> int:
    """Run a program and write all it says to a file while it says it.

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


def _last_words(process: subprocess.Popen[str]) -> str:
    """Wait for the end of a program that a terminal's Ctrl-C has reached as well, or end it."""
    try:
        return process.communicate(timeout=_PATIENCE)[0]
    except subprocess.TimeoutExpired:
        process.terminate()
        return process.communicate()[0]


def processor_seconds() -> float:
    """Return what the programs that this process ran have taken of the processor.

    Returns:
        User and system time, in seconds, of those that have ended and of their own programs:
        the difference of two calls around :func:`run_logged` is its program's.
    """
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def failure(program: str, status: int, log: Path, *, lines: int = 12) -> str:
    """Describe how a program failed.

    Args:
        program: What to call it.
        status: Its exit status.
        log: What it wrote.
        lines: How many of the last lines to quote.

    Returns:
        A message that names the log and ends with its last lines.
    """
    tail = log.read_text(encoding="utf-8").splitlines()[-lines:]
    quoted = "\n".join(f"  | {line[:300]}" for line in tail)
    return f"{program} ended with status {status}; the end of {log}:\n{quoted}"
