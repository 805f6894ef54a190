"""The time in which a device works, of events as PyTorch's profiler has them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from deltasam_fairseq.benchmarks.working import _spans, covered, working_seconds


class Event:
    """One of the profiler's."""

    def __init__(self, device: str, name: str, begin: int, length: int) -> None:
        self._device, self._name, self._begin, self._length = device, name, begin, length

    def device_type(self) -> Any:
        return SimpleNamespace(name=self._device)

    def name(self) -> str:
        return self._name

    def start_ns(self) -> int:
        return self._begin

    def duration_ns(self) -> int:
        return self._length


def test_kernels_count_and_names_of_stretches_do_not() -> None:
    events = [
        Event("CPU", "cudaLaunchKernel", 0, 90),
        Event("CUDA", "forward", 0, 100),
        Event("CUDA", "Optimizer.step#Adam.step", 0, 100),
        Event("CUDA", "gemm", 10, 5),
        Event("CUDA", "gemm", 12, 6),
        Event("CUDA", "Memcpy HtoD", 50, 1),
    ]
    profiler = SimpleNamespace(kineto_results=SimpleNamespace(events=lambda: events))
    assert covered(_spans(profiler, "CUDA")) == 9


def test_a_device_works_for_less_than_the_time_that_passes(device: torch.device) -> None:
    import time

    large = torch.ones(300, 300, device=device)

    def work() -> None:
        time.sleep(0.05)
        for _ in range(20):
            large @ large

    working_seconds(work, device)  # the first profile of a process takes its time
    begun = time.perf_counter()
    found = working_seconds(work, device)
    assert 0 < found < time.perf_counter() - begun - 0.05
