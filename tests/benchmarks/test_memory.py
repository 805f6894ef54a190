import pytest
import torch

from deltasam_fairseq.benchmarks.memory import highest, peak_bytes

CPU = torch.device("cpu")
KILO = 4 * 1024  # bytes of 1024 numbers


def test_counts_what_is_alive_at_once_to_the_byte() -> None:
    def work() -> None:
        first = torch.empty(3 * 1024)
        second = torch.empty(2 * 1024)
        del first
        third = torch.empty(4 * 1024)
        del second, third
        torch.empty(5 * 1024)

    assert peak_bytes(work, CPU) == 6 * KILO


def test_counts_what_an_operator_allocates_for_itself() -> None:
    matrix = torch.eye(32)

    # The result takes one unit; the rest is the factors and pivots of a solver.
    def work() -> None:
        torch.linalg.inv(matrix)

    assert peak_bytes(work, CPU) > KILO


def test_counts_the_graph_and_the_gradients_of_a_backward_pass() -> None:
    weight = torch.ones(1024, requires_grad=True)

    def work() -> None:
        # exp keeps its result; its gradient comes on top, beside that of the sum.
        weight.exp().sum().backward()
        weight.grad = None

    assert 2 * KILO <= peak_bytes(work, CPU) <= 2 * KILO + 64


def test_what_was_alive_before_does_not_count() -> None:
    before = torch.empty(8 * 1024)
    held = [before]

    def work() -> None:
        held.clear()
        torch.empty(1024)

    del before
    assert peak_bytes(work, CPU) == KILO


def test_work_that_allocates_nothing_has_no_peak() -> None:
    assert peak_bytes(lambda: None, CPU) == 0


def test_a_second_count_starts_from_zero() -> None:
    kept = []

    def work() -> None:
        kept.append(torch.empty(1024))

    assert [peak_bytes(work, CPU) for _ in range(3)] == [KILO] * 3


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


@pytest.mark.parametrize(
    ("changes", "top"), [([], 0), ([-5], 0), ([3, -3, 2], 3), ([-2, 5, 1, -4, 2], 4)]
)
def test_highest_running_sum(changes: list[int], top: int) -> None:
    assert highest(changes) == top
