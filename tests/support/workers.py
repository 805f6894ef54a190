"""Processes forked from a server that has imported torch and fairseq, and gloo workers in them.

A plain start imports both for five seconds; the server of a test session does so once.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """Return a TCP port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def forking() -> Any:
    """Return the context of the server, which starts with the first process."""
    # The server looks for modules to import where any new Python does.
    paths = list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    if str(ROOT) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *paths])
    context = multiprocessing.get_context("forkserver")
    fairseq = importlib.util.find_spec("fairseq")
    # torch imports torch._dynamo with the first optimizer, for another second.
    context.set_forkserver_preload(
        ["tests.support.fairseq_toys" if fairseq else "torch", "torch._dynamo"]
    )
    return context


def run_workers(function: Callable[..., Any], count: int, folder: Path, *arguments: Any) -> list:
    """Run ``function(rank, count, port, *arguments)`` in ``count`` processes.

    Args:
        function: A function of a module, so that it can be started by name.
        count: How many workers.
        folder: A folder for their results.
        *arguments: What else to hand over; picklable.

    Returns:
        What each returned, by rank. An exception in any of them is raised here.
    """
    forking()
    # A process cannot use a GPU if the one that it was forked from has looked for GPUs.
    method = "spawn" if torch.cuda.is_available() else "forkserver"
    torch.multiprocessing.start_processes(  # type: ignore[attr-defined]
        _run,
        args=(function, count, free_port(), folder, arguments),
        nprocs=count,
        start_method=method,
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _run(
    rank: int,
    function: Callable[..., Any],
    count: int,
    port: int,
    folder: Path,
    arguments: tuple[Any, ...],
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    torch.save(function(rank, count, port, *arguments), folder / f"{rank}.pt")
