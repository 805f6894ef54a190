"""Time, peak memory and working time of a piece of work, on the CPU or on a GPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from deltasam_fairseq.benchmarks.variants import Times

Result = TypeVar("Result")

#: fairseq's names for stretches of an update, which a profile of a GPU shows like kernels.
_STRETCHES = {"forward", "backward", "reduce-grads", "multiply-grads", "clip-grads", "optimizer"}


def timed(work: Callable[[], Result], device: torch.device) -> tuple[Times, Result]:
    """Return the times of a piece of work, and its result.

    A GPU has finished before and after, and its own clock counts.
    """
    events: list[Any] = []
    if device.type == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
    _finish(device)
    begun, worked = time.perf_counter(), time.process_time()
    if events:
        events[0].record()
    result = work()
    if events:
        events[1].record()
    _finish(device)
    elapsed = time.perf_counter() - begun
    if events:
        elapsed = events[0].elapsed_time(events[1]) / 1000
    return Times(elapsed, time.process_time() - worked), result


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running inside a measurement."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Return what a piece of work had allocated at its worst moment, at least 0.

    What was alive before does not count, and on the CPU releasing it does not either, so drop
    gradients first if the work would. A GPU's allocator keeps the count itself. On the CPU
    PyTorch's profiler records every allocation and release of PyTorch's allocator, those inside
    an operator included. Not seen are Python objects and scratch space that MKL or oneDNN take
    from elsewhere.

    Example:
        Two tensors of 4,000 bytes are alive together, the third comes alone:

        >>> def work():
        ...     pair = [torch.empty(1000) for _ in range(2)]
        ...     del pair
        ...     torch.empty(1000)
        >>> peak_bytes(work, torch.device("cpu"))
        8000
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    with torch.autograd.profiler.profile(profile_memory=True) as recorded:
        work()
    events = [e for e in recorded.kineto_results.events() if e.name() == "[memory]"]
    # Equal times keep their order.
    events.sort(key=lambda event: _span(event)[0])
    changes = (event.nbytes() for event in events if event.device_type().name == "CPU")
    return int(max(accumulate(changes, initial=0)))


def working_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a piece of work in which its device does something.

    The profiler makes Python slower, but it hardly changes what the kernels of a GPU take. On
    the CPU the time within PyTorch's operators counts, with the profiler's own.
    """
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    _finish(device)
    with profile(activities=[activity]) as seen:
        work()
        _finish(device)
    return covered(working_spans(seen.profiler, device.type.upper())) / 1e9


def covered(spans: Iterable[tuple[int, int]]) -> int:
    """Return the length of the union of some spans, in their unit.

    Args:
        spans: Begin and end of each, at least 0, in any order.

    Example:
        >>> covered([(5, 7), (0, 3), (1, 2), (2, 4)])
        6
    """
    total = reached = 0
    for begin, end in sorted(spans):
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def working_spans(profiler: Any, device: str) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each kernel of a GPU, or operator of the CPU, in nanoseconds."""
    for event in profiler.kineto_results.events():
        if event.device_type().name == device and not _is_stretch(event, device):
            yield _span(event)


def _is_stretch(event: Any, device: str) -> bool:
    """Tell a named stretch of the program, such as an optimizer's whole step, from work."""
    if device == "CPU":
        return not event.name().startswith("aten::")
    # Older versions of PyTorch do not mark the names of a program.
    return (
        (hasattr(event, "is_user_annotation") and bool(event.is_user_annotation()))
        or event.name().startswith("Optimizer.")
        or event.name() in _STRETCHES
    )


def _span(event: Any) -> tuple[int, int]:
    if hasattr(event, "start_ns"):
        begin, length = event.start_ns(), event.duration_ns()
    else:  # older versions of PyTorch count in microseconds
        begin, length = 1000 * event.start_us(), 1000 * event.duration_us()
    return begin, begin + length


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
