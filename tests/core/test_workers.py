"""Sums over workers."""

from __future__ import annotations

import pytest
import torch

from deltasam_fairseq.core import workers


def test_adding_up_goes_by_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def all_reduce(flat: torch.Tensor, group: object) -> None:
        calls.append((flat.numel(), flat.dtype))
        flat.mul_(2)  # as if two workers had the same

    monkeypatch.setattr(workers, "BUCKET_ELEMENTS", 5)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    tensors = [torch.full(shape, 1.0) for shape in ((2, 2), (3,), (7,), (1,))]
    assert workers.add_up(tensors, [1.0, 2.5], object()) == [2.0, 5.0]
    assert calls == [(n, torch.float32) for n in (6, 3, 7, 1)]
    assert all((t == 2).all() for t in tensors)


def test_half_precision_is_added_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In half precision 70,000 is no number, and 2,049 sentences are 2,048."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat, group: flat.mul_(2))
    tensors = [torch.full((3,), 60_000.0, dtype=torch.float16)]
    numbers = workers.add_up(
        tensors, [2049.0, 4.0], object(), factor=2.0, divisor=lambda found: found[1]
    )
    assert numbers == [4098.0, 8.0]
    # Twice 60,000 on each of two workers, divided by eight.
    assert tensors[0].tolist() == [30_000.0] * 3


def test_a_worker_that_is_gone_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_reduce(flat: torch.Tensor, group: object) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    with pytest.raises(RuntimeError, match="one of them has stopped.*Connection closed"):
        workers.add_up([torch.ones(2)], [1.0], object())


def test_tensors_of_several_types_go_by_type(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def all_reduce(flat: torch.Tensor, group: object) -> None:
        calls.append((flat.numel(), flat.dtype))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    tensors = [torch.tensor([0.1], dtype=torch.float64), torch.ones(2), torch.ones(3)]
    assert workers.add_up(tensors, [7.0], object()) == [7.0]
    assert calls == [(2, torch.float64), (5, torch.float32)]
    assert tensors[0].item() == 0.1
