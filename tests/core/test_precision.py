"""Full precision for a block, and the question whether a pass has it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deltasam_fairseq.core import precision
from deltasam_fairseq.core.precision import full_precision, is_full_precision, is_half

WEIGHTS = [torch.zeros(3, 3)]


def test_half_is_half() -> None:
    kinds = {d: is_half(torch.zeros(1, dtype=d)) for d in (torch.float16, torch.bfloat16)}
    assert all(kinds.values())
    for dtype in (torch.float32, torch.float64, torch.int16, torch.bool):
        assert not is_half(torch.zeros(1, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_not_full(dtype: torch.dtype) -> None:
    assert is_full_precision(WEIGHTS)
    assert is_full_precision([torch.zeros(1, dtype=torch.float64)])
    assert not is_full_precision([*WEIGHTS, torch.zeros(1, dtype=dtype)])


def test_autocast_is_not_full_and_is_switched_off() -> None:
    layer, x = nn.Linear(3, 3), torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_full_precision(layer.parameters())
        with full_precision(layer.parameters()):
            assert is_full_precision(layer.parameters())
            assert layer(x).dtype == torch.float32
        assert layer(x).dtype == torch.bfloat16
    assert is_full_precision(layer.parameters())


def test_tf32_is_switched_off_and_put_back() -> None:
    switches = precision._tf32_switches()
    before = [getattr(b, name) for b, name, _ in switches]
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        allowed = [getattr(b, name) for b, name, _ in switches]
        with pytest.raises(KeyError), full_precision(WEIGHTS):
            assert [getattr(b, name) for b, name, _ in switches] == [f for _, _, f in switches]
            raise KeyError
        assert [getattr(b, name) for b, name, _ in switches] == allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert len(before) == 2


@pytest.mark.gpu
def test_tf32_counts_on_a_gpu_alone() -> None:
    weights = [torch.zeros(3, 3, device="cuda")]
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert is_full_precision(WEIGHTS)
        assert not is_full_precision(weights)
        with full_precision(weights):
            assert is_full_precision(weights)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert is_full_precision(weights)
