"""Timing one piece of work by two clocks."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from deltasam_fairseq.benchmarks.measurement import Times

Result = TypeVar("Result")


def timed(work: Callable[[], Result], device: torch.device) -> tuple[Times, Result]:
    """Time a piece of work.

    Args:
        work: What to run, once.
        device: Where it runs; a GPU has finished before and after, and its own
            clock counts.

    Returns:
        What it took, and what it returned.
    """
    events = _events(device)
    finish(device)
    begun, worked = time.perf_counter(), time.process_time()
    if events:
        events[0].record()
    result = work()
    if events:
        events[1].record()
    finish(device)
    elapsed = time.perf_counter() - begun
    if events:
        elapsed = events[0].elapsed_time(events[1]) / 1000
    return Times(elapsed, time.process_time() - worked), result


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running inside a measurement.

    Yields:
        Nothing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def finish(device: torch.device) -> None:
    """Wait until a device has done all that it was given.

    Args:
        device: ``cpu``, which has, or ``cuda``.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _events(device: torch.device) -> list[torch.cuda.Event]:
    if device.type != "cuda":
        return []
    return [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
