"""Operations, allocations and waits, counted where their numbers are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deltasam_fairseq.benchmarks.counting import counted

X = torch.arange(6.0).view(2, 3)
MASK = X > 2


def written(value: float | Tensor) -> Tensor:
    changed = X.clone()
    changed[MASK] = value
    return changed


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda: X * 2, (1, 1, 1)),
        (X.t, (1, 0, 0)),
        (lambda: X.clone().mul_(2), (2, 2, 1)),
        (lambda: torch.empty(3), (1, 0, 1)),
        (lambda: torch._foreach_mul([X] * 5, 2.0), (1, 1, 5)),
        (lambda: X.split(1), (1, 0, 0)),
    ],
)
def test_operations_launches_and_allocations(
    work: Callable[[], object], expected: tuple[int, int, int]
) -> None:
    found = counted(work)
    assert (found.operations, found.launches, found.allocations) == expected
    assert found.synchronizations == 0


def test_a_detached_tensor_is_no_work() -> None:
    found = counted(X.detach)  # once or twice, by the version of PyTorch
    assert (found.launches, found.allocations, found.synchronizations) == (0, 0, 0)


@pytest.mark.parametrize(
    ("work", "waits"),
    [
        (X.sum().item, 1),
        (lambda: bool(MASK.any()), 1),
        (lambda: float(X[0, 0]), 1),
        (X.tolist, 1),
        (X.sum().tolist, 1),
        (X.numpy, 1),
        (X.cpu, 1),
        (MASK.nonzero, 1),
        (lambda: X[MASK], 1),
        (lambda: torch.masked_select(X, MASK), 1),
        (X.unique, 1),
        (lambda: torch.equal(X, X), 1),
        (lambda: torch.repeat_interleave(torch.tensor([1, 2])), 1),
        (lambda: torch.repeat_interleave(torch.tensor([1, 2]), output_size=3), 0),
        (lambda: X[torch.tensor([0, 1])], 0),
        (lambda: X.masked_fill(MASK, 0), 0),
        (lambda: written(torch.ones(3)), 1),
        (lambda: written(1.0), 0),
        (lambda: torch.where(MASK, X, 0), 0),
    ],
)
def test_what_waits_for_a_value(work: Callable[[], object], waits: int) -> None:
    found = counted(work)
    assert found.synchronizations == waits
    assert found.places.total() == waits


def test_a_backward_pass_is_counted_where_it_runs() -> None:
    layer = nn.Linear(3, 2, bias=False)
    forward = counted(lambda: layer(X))
    both = counted(lambda: layer(X).sum().backward())
    assert forward.launches == 1  # a product
    assert both.launches == 4  # and a sum, its ones, the product of the gradient


def test_a_wait_is_told_by_its_place() -> None:
    from deltasam_fairseq.core.weights import usable

    found = counted(lambda: usable(torch.ones(3)))
    assert found.places == {"weights.py:usable": 1}
