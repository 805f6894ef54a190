"""Peak memory of a piece of work, counted exactly rather than sampled.

On CUDA the caching allocator keeps the count itself. On the CPU every
allocation and release that goes through PyTorch's allocator is recorded by its
profiler, those inside an operator included (hooks on operators would miss
them, and the process's resident size counts pages, not tensors). Not seen are
Python objects and scratch space that MKL or oneDNN take from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd.profiler import profile


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Run a piece of work and count what it had allocated at its worst moment.

    Counted from the start: what was alive before does not count, and on the
    CPU releasing it does not either, so drop gradients first if the work would.

    Args:
        work: What to run, once.
        device: Where its tensors are; ``cpu`` or ``cuda``.

    Returns:
        The largest number of bytes that were alive at once, at least 0.

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
    with profile(profile_memory=True) as recorded:
        work()
    return highest(_changes(recorded.kineto_results.events()))


def highest(changes: Iterable[int]) -> int:
    """Return the highest running sum, at least 0.

    Args:
        changes: Bytes allocated, or released as a negative number, in order.

    Returns:
        Bytes.

    Example:
        >>> highest([4, 4, -4, -4, 6])
        8
    """
    total = top = 0
    for change in changes:
        total += change
        top = max(top, total)
    return top


def _changes(events: Iterable[Any]) -> list[int]:
    found = [event for event in events if event.name() == "[memory]"]
    # Older versions of PyTorch count in microseconds; equal times keep their order.
    found.sort(key=lambda e: e.start_ns() if hasattr(e, "start_ns") else e.start_us())
    return [event.nbytes() for event in found if event.device_type().name == "CPU"]
