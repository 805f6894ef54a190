"""A linear layer whose every sentence has weights of its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from deltasam_fairseq.core.precision import full_precision
from deltasam_fairseq.per_instance.layout import Layout
from deltasam_fairseq.per_instance.perturbation import Perturbation


class SentenceLinear(torch.autograd.Function):
    """``y_i = x_i (W + eps_i)ᵀ + b + e_i``, for which autograd keeps x and no product."""

    @staticmethod
    def forward(  # noqa: D102, PLR0917
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        moved: Perturbation,
        shift: Tensor | None,
        layout: Layout,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.moved, ctx.layout, ctx.has_bias = moved, layout, bias is not None
        with full_precision([x]):
            merged = weight if weight is not None and moved.merges else None
            if weight is None or merged is not None:
                y = x.new_zeros(*x.shape[:-1], moved.shape[0])
                y = y if bias is None else y + bias
            else:
                y = linear(x, weight, bias)
            return _by_sentence(moved.add_product, x, y, merged, shift, layout)

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        (delta,) = deltas
        x, weight = ctx.saved_tensors
        moved: Perturbation = ctx.moved
        back = gradient = total = None
        with full_precision([x]):
            flat = delta.flatten(0, -2)
            if ctx.needs_input_grad[0]:
                merged = weight if weight is not None and moved.merges else None
                if weight is None or merged is not None:
                    back = torch.zeros_like(x, memory_format=torch.contiguous_format)
                else:
                    back = (flat @ weight).view(x.shape)
                back = _by_sentence(moved.add_back_product, delta, back, merged, None, ctx.layout)
            if ctx.needs_input_grad[1]:
                gradient = flat.T @ x.flatten(0, -2)
            if ctx.has_bias and ctx.needs_input_grad[2]:
                total = flat.sum(0)
        return back, gradient, total, None, None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``torch.nn.functional.linear``, where possible not as a view.

    Args:
        x: Shape ``(..., b)``.
        weight: Shape ``(a, b)``.
        bias: Shape ``(a,)``.

    Returns:
        Shape ``(..., a)``: the same product in the same memory order.
    """
    if bias is None or x.dim() != 3 or not x.is_contiguous():
        return F.linear(x, weight, bias)
    flat = torch.addmm(bias, x.flatten(0, 1), weight.t())
    own: Tensor = torch.ops.aten._unsafe_view.default(flat, (*x.shape[:-1], len(weight)))
    return own


def sentence_linear(  # noqa: PLR0917
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    moved: Perturbation,
    shift: Tensor | None,
    layout: Layout,
) -> Tensor:
    """Multiply every sentence's rows by its own weights.

    Args:
        x: Shape ``(..., b)``, float32 or wider.
        weight: ``W``, shape ``(a, b)``, of the same dtype; zero when left out.
        bias: ``b``, shape ``(a,)``, of the same dtype.
        moved: The perturbations of W.
        shift: Those of b, shape ``(N, a)``.
        layout: Where the sentences are in x.

    Returns:
        Shape ``(..., a)``.
    """
    y: Tensor = SentenceLinear.apply(x, weight, bias, moved, shift, layout)  # type: ignore[no-untyped-call]
    return y


def _by_sentence(  # noqa: PLR0917
    add: Any, x: Tensor, y: Tensor, merged: Tensor | None, shift: Tensor | None, layout: Layout
) -> Tensor:
    """Add a product to a result of the layer's own shape, in place where its memory allows."""
    rows = layout.listed(y, 1)
    add(layout.listed(x, 1), rows, merged)
    if shift is not None:
        rows += shift[:, None]
    if rows.data_ptr() == y.data_ptr():
        return y
    return layout.unlisted(rows, y)
