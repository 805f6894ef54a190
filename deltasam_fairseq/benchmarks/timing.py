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
        device: Where it runs; a GPU has finished before and after.

    Returns:
        What it took, and what it returned.
    """
    _finish(device)
    begun, worked = time.perf_counter(), time.process_time()
    result = work()
    _finish(device)
    return Times(time.perf_counter() - begun, time.process_time() - worked), result


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


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
