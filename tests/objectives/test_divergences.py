"""Divergences against the definition, one distribution at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from deltasam_fairseq.objectives import divergences
from deltasam_fairseq.objectives.divergences import divergence, squared_error


def logits(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, *shape, generator=draw, dtype=torch.float64).to(dtype)
    return p.requires_grad_(), q.requires_grad_()


def by_loop(p: Tensor, q: Tensor, words: Tensor, forth: float, back: float) -> Tensor:
    """KL from probabilities, word after word."""
    found = []
    for sentence in range(len(p)):
        total = p.new_zeros(())
        for a, b, counts in zip(p[sentence], q[sentence], words[sentence], strict=True):
            pa, pb = a.exp() / a.exp().sum(), b.exp() / b.exp().sum()
            if counts:
                total = total + forth * (pa * (pa / pb).log()).sum()
                total = total + back * (pb * (pb / pa).log()).sum()
        found.append(total)
    return torch.stack(found)


@pytest.mark.parametrize(("forth", "back"), [(1.0, 1.0), (1.0, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("piece", [1, 20, 2**24])
def test_tokens_equal_the_loop(
    forth: float, back: float, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergences, "PIECE", piece)
    p, q = logits(3, 4, 7)
    words = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    fast = divergence(p, q, words, forth=forth, back=back)
    slow = by_loop(p, q, words, forth, back)
    torch.testing.assert_close(fast, slow)
    shares = torch.tensor([0.3, 2.0, 5.0], dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((shares * fast).sum(), [p, q]),
        torch.autograd.grad((shares * slow).sum(), [p, q]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_classes_are_one_token_each() -> None:
    p, q = logits(5, 3)
    words = torch.ones(5, 1, dtype=torch.bool)
    torch.testing.assert_close(divergence(p, q), divergence(p[:, None], q[:, None], words))


def test_gradients_pass_the_numerical_check() -> None:
    p, q = logits(2, 3)
    assert torch.autograd.gradcheck(lambda a, b: divergence(a, b, forth=0.7, back=1.3), (p, q))


def test_half_precision_is_computed_in_float32() -> None:
    p, q = logits(4, 50, dtype=torch.bfloat16)
    found = divergence(p, q)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, divergence(p.float(), q.float()))
    (gradient,) = torch.autograd.grad(found.sum(), p)
    assert gradient.dtype == torch.bfloat16


def test_squared_error() -> None:
    found = squared_error(torch.tensor([1.0, 3.0]).half(), torch.tensor([0.5, -1.0]).half())
    assert found.tolist() == [0.25, 16.0]
    assert found.dtype == torch.float32


def test_shapes_that_do_not_belong_together() -> None:
    with pytest.raises(ValueError, match=r"logits of shapes \(2, 3\) and \(2, 4\)"):
        divergence(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"\(N, T, V\) with words"):
        divergence(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))


def test_far_apart_distributions_are_finite() -> None:
    p = torch.tensor([[1e4, 0.0]])
    assert math.isfinite(divergence(p, -p).item())
