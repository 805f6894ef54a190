"""Functions run in several gloo workers on this machine, with every exit status checked."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing


def free_port() -> int:
    """Return a TCP port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
    multiprocessing.spawn(  # type: ignore[attr-defined]
        _run, args=(function, count, free_port(), folder, arguments), nprocs=count, join=True
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
