"""A linear layer whose every sentence has weights of its own, formed in pieces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.core.per_instance.perturbation import Perturbation
from deltasam_fairseq.core.precision import full_precision


class MergedLinear(torch.autograd.Function):
    """``y_i = x_i (W + eps_i)ᵀ``; the sum is formed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, moved: Perturbation) -> Tensor:  # noqa: D102
        ctx.save_for_backward(x, weight)
        ctx.moved = moved
        with full_precision([x]):
            parts = [
                torch.bmm(x[sentences], moved.added_to(weight, sentences).transpose(1, 2))
                for sentences in moved.plan.sentences(len(x), weight.numel(), weight)
            ]
        return _joined(parts)

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # noqa: D102
        (delta,) = deltas
        x, weight = ctx.saved_tensors
        back = gradient = None
        with full_precision([x]):
            if ctx.needs_input_grad[0]:
                cuts = ctx.moved.plan.sentences(len(x), weight.numel(), weight)
                back = _joined(
                    [torch.bmm(delta[cut], ctx.moved.added_to(weight, cut)) for cut in cuts]
                )
            if ctx.needs_input_grad[1]:
                gradient = delta.flatten(0, 1).T @ x.flatten(0, 1)
        return back, gradient, None


def merged_linear(x: Tensor, weight: Tensor, moved: Perturbation) -> Tensor:
    """Multiply every sentence's rows by its own weights.

    Args:
        x: Shape ``(N, T, b)``, float32 or wider.
        weight: ``W``, shape ``(a, b)``, of the same dtype.
        moved: The perturbations of it.

    Returns:
        ``x_i (W + eps_i)ᵀ``, shape ``(N, T, a)``.
    """
    product: Tensor = MergedLinear.apply(x, weight, moved)  # type: ignore[no-untyped-call]
    return product


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
