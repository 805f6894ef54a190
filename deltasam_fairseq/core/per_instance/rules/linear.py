"""Linear layers, and every other product with a weight matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from deltasam_fairseq.core.per_instance.errors import Unsupported
from deltasam_fairseq.core.per_instance.factors import Dense, Form, Outer, wide
from deltasam_fairseq.core.per_instance.layout import Layout, as_list
from deltasam_fairseq.core.per_instance.merged import merged_linear
from deltasam_fairseq.core.per_instance.perturbation import Perturbation
from deltasam_fairseq.core.per_instance.rules.base import Call, LayerRule, layer_rule


@layer_rule(F.linear)
class Linear(LayerRule):
    """``y_t = W x_t + b``, so ``dl_i/dW = sum_t delta_it x_itᵀ``."""

    def bind(  # noqa: D102
        self,
        covered: Callable[[Any], bool],
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> Call:
        if weight.dim() != 2 or input.dim() < 2:
            raise Unsupported(
                f"a product of an input of shape {tuple(input.shape)} and a weight of shape "
                f"{tuple(weight.shape)} has no dimension for sentences"
            )
        return Call(self, input, {"weight": weight} | ({} if bias is None else {"bias": bias}))

    def forward(self, call: Call, params: Mapping[str, Tensor]) -> Tensor:  # noqa: D102
        return F.linear(call.input, params["weight"], params.get("bias"))

    def rows(self, call: Call, dims: int) -> int:  # noqa: D102
        return dims - 1

    def gradients(self, call: Call, delta: Tensor, layout: Layout) -> dict[str, Form]:  # noqa: D102
        left = as_list(layout.split(delta), 1)
        right = as_list(layout.split(call.input.detach()), 1)
        return {"weight": Outer(left, right), "bias": Dense(wide(left).sum(1))}

    def perturbed(  # noqa: D102
        self,
        call: Call,
        params: Mapping[str, Tensor],
        moved: Mapping[str, Perturbation],
        layout: Layout,
    ) -> Tensor:
        weight, bias = moved.get("weight"), moved.get("bias")
        if weight is not None and weight.merges():
            plain, weight = self._merged(call, params, weight, layout), None
        else:
            plain = self.forward(call, params)
        parts = layout.split(plain)
        extra = None
        if weight is not None:
            x = as_list(layout.split(wide(call.input)), 1)
            if layout.leads and plain.dtype == x.dtype:
                plain = weight.product(x, onto=as_list(parts, 1)).view(plain.shape)
            else:
                extra = weight.product(x)
        if bias is not None:
            shift = bias.dense().view(len(parts), *[1] * (parts.dim() - 2), -1)
            extra = shift.expand(parts.shape) if extra is None else extra.view(parts.shape) + shift
        if extra is None:
            return plain
        # In the memory order of the plain result: dropout draws its masks in that order.
        return (plain + layout.join(extra.view(parts.shape))).to(plain.dtype)

    def _merged(
        self, call: Call, params: Mapping[str, Tensor], moved: Perturbation, layout: Layout
    ) -> Tensor:
        parts = layout.split(wide(call.input))
        x = as_list(parts, 1)
        y = merged_linear(x, wide(params["weight"]), moved)
        y = layout.join(y.reshape(*parts.shape[:-1], y.shape[-1]))
        return y + params["bias"] if "bias" in params else y
