"""Divergences between what a model makes of two views of a batch, one number per sentence.

They are computed in float32, or float64 where the logits are, and in pieces: a vocabulary of
50,264 words leaves no room for further copies of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of the logits that are looked at in one go (64 MiB of float32).
PIECE = 2**24


def divergence(
    p: Tensor,
    q: Tensor,
    words: Tensor | None = None,
    *,
    forth: float = 1.0,
    back: float = 1.0,
) -> Tensor:
    """Return ``forth * KL(P || Q) + back * KL(Q || P)`` of each sentence.

    With both factors 1 it is the symmetric divergence of R3F and SMART, with 1/2 that of R-Drop,
    and with one of them 0 a one-sided one. Gradients flow to both sides.

    Args:
        p: Logits of P, shape ``(N, C)``, or ``(N, T, V)`` with a distribution for every token.
        q: Logits of Q, of the same shape.
        words: Which tokens count, boolean, shape ``(N, T)``; for tokens alone.
        forth: Factor of KL(P || Q).
        back: Factor of KL(Q || P).

    Returns:
        Shape ``(N,)``, nats; a sentence's tokens are summed.

    Raises:
        ValueError: If the shapes do not belong together.

    Example:
        >>> p = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> divergence(p, torch.zeros(2, 2))
        tensor([0.0000, 0.2311])
    """
    if p.shape != q.shape or p.dim() != (2 if words is None else 3):
        raise ValueError(
            f"logits of shapes {tuple(p.shape)} and {tuple(q.shape)}; both must be (N, C), or "
            "(N, T, V) with words (N, T)"
        )
    if words is None:
        values: Tensor = _Divergence.apply(p, q, forth, back)  # type: ignore[no-untyped-call]
        return values
    size = p.shape[-1]
    flat = _Divergence.apply(  # type: ignore[no-untyped-call]
        p.reshape(-1, size), q.reshape(-1, size), forth, back
    )
    return torch.where(words, flat.view(words.shape), 0).sum(1)


def squared_error(p: Tensor, q: Tensor) -> Tensor:
    """Return the squared difference of two predictions of each sentence.

    Args:
        p: Shape ``(N,)``.
        q: Shape ``(N,)``.

    Returns:
        Shape ``(N,)``, float32 or wider.
    """
    wide = torch.promote_types(p.dtype, torch.float32)
    return (p.to(wide) - q.to(wide)).square()


class _Divergence(torch.autograd.Function):
    """The divergence of rows of logits; keeps nothing but them for the backward pass."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, forth: float, back: float) -> Tensor:  # noqa: D102
        ctx.save_for_backward(p, q)
        ctx.factors = forth, back
        parts = []
        for rows in _pieces(p):
            a, b = (_log_probabilities(side[rows]) for side in (p, q))
            difference = a - b
            parts.append(
                forth * (a.exp() * difference).sum(1) - back * (b.exp() * difference).sum(1)
            )
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # noqa: D102
        p, q = ctx.saved_tensors
        forth, back = ctx.factors
        to_p, to_q = torch.empty_like(p), torch.empty_like(q)
        for rows in _pieces(p):
            a, b = (_log_probabilities(side[rows]) for side in (p, q))
            pa, pb, difference = a.exp(), b.exp(), a - b
            # d KL(P||Q) / dp = P (log P - log Q - KL),  d KL(Q||P) / dp = P - Q,  and back.
            first = (pa * difference).sum(1, keepdim=True)
            second = -(pb * difference).sum(1, keepdim=True)
            own = gradient[rows].unsqueeze(1)
            to_p[rows] = (own * (forth * pa * (difference - first) + back * (pa - pb))).to(p.dtype)
            to_q[rows] = (own * (forth * (pb - pa) - back * pb * (difference + second))).to(q.dtype)
        return to_p, to_q, None, None


def _log_probabilities(logits: Tensor) -> Tensor:
    return F.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _pieces(logits: Tensor) -> Iterator[slice]:
    step = max(1, PIECE // max(1, logits.shape[1]))
    for start in range(0, max(1, len(logits)), step):
        yield slice(start, start + step)
