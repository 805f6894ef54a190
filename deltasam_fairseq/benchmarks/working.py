"""How long a device works during a piece of work: the rest of the time it waits for Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from deltasam_fairseq.benchmarks.timing import finish

_FAIRSEQS = {"forward", "backward", "reduce-grads", "multiply-grads", "clip-grads", "optimizer"}


def working_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Run a piece of work and add up the time in which its device does something.

    The profiler makes Python slower, so the time that the work takes under it says
    nothing; what the kernels of a GPU take hardly changes. On the CPU what counts is
    the time within PyTorch's operators, with the profiler's own.

    Args:
        work: What to run, once.
        device: Where it runs, ``cpu`` or ``cuda``.

    Returns:
        Seconds in which at least one kernel or operator ran.
    """
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    finish(device)
    with profile(activities=[activity]) as seen:
        work()
        finish(device)
    return covered(_spans(seen.profiler, device.type.upper())) / 1e9


def covered(spans: Iterable[tuple[int, int]]) -> int:
    """Return the length of the union of some spans.

    Args:
        spans: Begin and end of each, in any order.

    Returns:
        The length, in the unit of the spans.

    Example:
        >>> covered([(5, 7), (0, 3), (1, 2), (2, 4)])
        6
    """
    total = 0
    reached: int | None = None
    for begin, end in sorted(spans):
        if reached is None or begin > reached:
            total, reached = total + end - begin, end
        elif end > reached:
            total, reached = total + end - reached, end
    return total


def _is_annotation(event: Any, device: str) -> bool:
    """Tell a stretch that has a name, such as an optimizer's whole step, from work."""
    if device == "CPU":
        return not event.name().startswith("aten::")
    # fairseq names its passes. Old versions of PyTorch do not tell such names apart.
    return (
        (hasattr(event, "is_user_annotation") and bool(event.is_user_annotation()))
        or event.name().startswith("Optimizer.")
        or event.name() in _FAIRSEQS
    )


def _spans(profiler: Any, device: str) -> Iterator[tuple[int, int]]:
    for event in profiler.kineto_results.events():
        if event.device_type().name != device or _is_annotation(event, device):
            continue
        if hasattr(event, "start_ns"):
            begin, length = event.start_ns(), event.duration_ns()
        else:  # older versions of PyTorch count in microseconds
            begin, length = 1000 * event.start_us(), 1000 * event.duration_us()
        yield begin, begin + length
