"""Norms over many tensors, and each tensor once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from deltasam_fairseq.core.vectors import global_norm, unique


def test_unique_keeps_the_order_and_compares_by_identity() -> None:
    a, b = torch.ones(2), torch.ones(2)
    result = unique([a, b, a, b, a])
    assert len(result) == 2
    assert result[0] is a and result[1] is b
    assert unique([]) == []


def test_tensors_that_share_memory_are_still_different_ones() -> None:
    """The first parameter of a flat buffer starts where the buffer does; empty ones, nowhere."""
    flat = torch.ones(4)
    assert len(unique([flat, flat[:2], torch.zeros(0), torch.zeros(0)])) == 4


def test_norm_of_all_entries_together() -> None:
    tensors = [torch.randn(3, 2), torch.randn(()), torch.randn(5), torch.randn(2, 0)]
    together = torch.cat([t.double().flatten() for t in tensors])
    torch.testing.assert_close(global_norm(tensors), together.norm(), rtol=1e-6, atol=0)


def test_norm_is_a_detached_double() -> None:
    norm = global_norm([nn.Parameter(torch.ones(4))])
    assert (norm.item(), norm.dtype, norm.dim(), norm.requires_grad) == (
        2.0,
        torch.float64,
        0,
        False,
    )


def test_norm_of_nothing_is_zero() -> None:
    assert global_norm([]).item() == 0.0
    assert global_norm([torch.zeros(3)]).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_squares_of_half_precision_neither_vanish_nor_overflow(dtype: torch.dtype) -> None:
    """1e-4 squared is below float16's smallest number, 1e3 squared above its largest."""
    for value in (1e-4, 1e3):
        tensor = torch.full((10_000,), value, dtype=dtype)
        assert global_norm([tensor]).item() == pytest.approx(100 * value, rel=1e-2)


def test_double_precision_is_kept() -> None:
    tiny = torch.tensor([1.0, 1e-9], dtype=torch.float64)
    assert global_norm([tiny * 1e-200]).item() == pytest.approx(1e-200, rel=1e-15)


def test_dtypes_may_be_mixed() -> None:
    tensors = [torch.tensor([3.0]).half(), torch.tensor([4.0]).double()]
    assert global_norm(tensors).item() == 5.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows(bad: float) -> None:
    assert not torch.isfinite(global_norm([torch.ones(3), torch.tensor([bad])]))
