"""Peak memory and working time, where their numbers are known."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deltasam_fairseq.benchmarks.instruments import (
    covered,
    peak_bytes,
    working_seconds,
    working_spans,
)

CPU = torch.device("cpu")
KILO = 4 * 1024  # bytes of 1024 numbers


def test_memory_is_what_is_alive_at_once_to_the_byte() -> None:
    def work() -> None:
        first = torch.empty(3 * 1024)
        second = torch.empty(2 * 1024)
        del first
        third = torch.empty(4 * 1024)
        del second, third
        torch.empty(5 * 1024)

    assert [peak_bytes(work, CPU) for _ in range(2)] == [6 * KILO] * 2
    assert peak_bytes(lambda: None, CPU) == 0


def test_memory_of_an_operator_itself_counts() -> None:
    # The result takes one unit; the rest is the factors and pivots of a solver.
    matrix = torch.eye(32)
    assert peak_bytes(lambda: torch.linalg.inv(matrix), CPU) > KILO


def test_memory_of_the_graph_and_the_gradients_counts() -> None:
    weight = torch.ones(1024, requires_grad=True)

    def work() -> None:
        # exp keeps its result; its gradient comes on top, beside that of the sum.
        weight.exp().sum().backward()
        weight.grad = None

    assert 2 * KILO <= peak_bytes(work, CPU) <= 2 * KILO + 64


def test_memory_that_was_alive_before_does_not_count() -> None:
    held = [torch.empty(8 * 1024)]

    def work() -> None:
        held.clear()
        torch.empty(1024)

    assert peak_bytes(work, CPU) == KILO


def test_an_error_in_the_work_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        peak_bytes(lambda: 1 / 0, CPU)
    assert peak_bytes(lambda: torch.empty(1024), CPU) == KILO


@pytest.mark.gpu
def test_the_allocator_of_a_gpu_is_asked() -> None:
    device = torch.device("cuda")

    def work() -> None:
        first = torch.empty(1024 * 1024, device=device)
        del first
        torch.empty(512 * 1024, device=device)

    assert peak_bytes(work, device) == 1024 * KILO


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


def test_kernels_work_and_named_stretches_do_not() -> None:
    events = [
        Event("CPU", "cudaLaunchKernel", 0, 90),
        Event("CUDA", "forward", 0, 100),
        Event("CUDA", "Optimizer.step#Adam.step", 0, 100),
        Event("CUDA", "gemm", 10, 5),
        Event("CUDA", "gemm", 12, 6),
        Event("CUDA", "Memcpy HtoD", 50, 1),
    ]
    profiler = SimpleNamespace(kineto_results=SimpleNamespace(events=lambda: events))
    assert covered(working_spans(profiler, "CUDA")) == 9


def test_a_device_works_for_less_than_the_time_that_passes(device: torch.device) -> None:
    large = torch.ones(300, 300, device=device)

    def work() -> None:
        time.sleep(0.05)
        for _ in range(20):
            large @ large

    working_seconds(work, device)  # the first profile of a process takes its time
    begun = time.perf_counter()
    found = working_seconds(work, device)
    assert 0 < found < time.perf_counter() - begun - 0.05
