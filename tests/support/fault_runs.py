"""Training processes of their own, to be killed: started in a moment, with their logs kept."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support.workers import forking, free_port

# How long a process may take that is expected to end by itself.
PATIENCE = 120.0

GLOO = (
    "--distributed-backend gloo --ddp-backend legacy_ddp --distributed-no-spawn "
    "--distributed-world-size"
).split()

# What a process does before it trains: a fault to inject, by name.
Prepare = Callable[..., None]


class Worker:
    """One training process.

    Args:
        flags: All flags of ``fairseq-train``.
        log: The file for what it writes.
        prepare: Called in the process before training, to inject a fault.
        arguments: What ``prepare`` gets.
    """

    def __init__(
        self, flags: Sequence[str], log: Path, prepare: Prepare | None, arguments: tuple[Any, ...]
    ) -> None:
        self.log = log
        self.process = forking().Process(
            target=_train, args=(list(flags), log, prepare, arguments), daemon=True
        )
        self.process.start()

    def kill(self) -> None:
        """Kill it as ``kill -9`` does."""
        if self.process.pid is not None and self.process.exitcode is None:
            os.kill(self.process.pid, signal.SIGKILL)

    def ends(self, within: float = PATIENCE) -> int:
        """Return its exit status, negative for a signal; kill it and fail when it takes longer."""
        self.process.join(within)
        code = self.process.exitcode
        if code is None:
            self.kill()
            raise AssertionError(f"still running after {within} s:\n{self.said()[-3000:]}")
        return code

    def said(self) -> str:
        """Return what it has written so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def start(
    flags: Sequence[str],
    logs: Path,
    *,
    workers: int = 1,
    prepare: Prepare | None = None,
    arguments: tuple[Any, ...] = (),
    on: int | None = None,
) -> list[Worker]:
    """Start a run, and return its workers by rank.

    Args:
        flags: All flags but those of several workers.
        logs: A folder for what the workers write.
        workers: How many gloo workers.
        prepare: A module's function that injects a fault.
        arguments: Its arguments.
        on: The only worker that gets the fault; all, if not given.
    """
    logs.mkdir(parents=True, exist_ok=True)
    method = f"tcp://127.0.0.1:{free_port()}"
    started = []
    for rank in range(workers):
        more: list[str] = []
        if workers > 1:
            more = [*GLOO, str(workers), "--distributed-rank", str(rank)]
            more += ["--distributed-init-method", method]
        fault = prepare if on is None or on == rank else None
        log = logs / f"{time.monotonic_ns()}.{rank}.log"
        started.append(Worker([*flags, *more], log, fault, arguments))
    return started


def finish(started: Sequence[Worker]) -> None:
    """Wait for the end of a run that is expected to succeed."""
    for worker in started:
        assert worker.ends() == 0, worker.said()[-3000:]


@contextlib.contextmanager
def none_left(started: Sequence[Worker]) -> Iterator[None]:
    """Kill what still runs after a block."""
    try:
        yield
    finally:
        for worker in started:
            worker.kill()


def wait_for(condition: Callable[[], bool], started: Sequence[Worker], within: float) -> bool:
    """Look every half millisecond; say whether it came true in time, while all workers ran."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if condition():
            return True
        if any(worker.process.exitcode is not None for worker in started):
            return False
        time.sleep(0.0005)
    return False


def die_while_copying(turn: int) -> None:
    """Die in the middle of a copy to another name, the ``turn``-th from 1."""
    copies: list[int] = []
    copy = shutil.copyfileobj

    def half(source: Any, target: Any, *length: int) -> None:
        copies.append(1)
        if len(copies) < turn:
            return copy(source, target, *length)
        target.write(source.read()[: -source.tell() // 2])
        target.flush()
        return os.kill(os.getpid(), signal.SIGKILL)

    shutil.copyfileobj = half  # type: ignore[assignment]


def die_in_the_ascent(turn: int) -> None:
    """Die on entering the ascent's all-reduce, where the other workers wait.

    In the ``turn``-th update, counted from 1.
    """
    from deltasam_fairseq.core import workers

    calls: list[int] = []

    def all_reduce(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == turn:
            os.kill(os.getpid(), signal.SIGKILL)
        return torchs.all_reduce(*args, **kwargs)

    torchs = vars(workers)["distributed"]
    vars(workers)["distributed"] = SimpleNamespace(all_reduce=all_reduce)


def allow_files_of(size: int) -> None:
    """Let the system refuse to write more than some bytes to a file, as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _train(
    flags: list[str], log: Path, prepare: Prepare | None, arguments: tuple[Any, ...]
) -> None:
    """Run ``fairseq-train`` in this process, which is a new one."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    import torch

    torch.set_num_threads(1)
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.distributed import utils as distributed
    from fairseq_cli import train

    from deltasam_fairseq.fairseq_plugin import checkpoints, step_errors
    from tests.support import fairseq_toys  # noqa: F401  (registers the optimizer)

    checkpoints.install()
    step_errors.install()

    if prepare is not None:
        prepare(*arguments)
    args = options.parse_args_and_arch(options.get_training_parser(), flags)
    distributed.call_main(convert_namespace_to_omegaconf(args), train.main)
