"""Linear layers, and every other product with a weight matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from deltasam_fairseq.core.precision import is_full_precision, wide
from deltasam_fairseq.per_instance.errors import Unsupported
from deltasam_fairseq.per_instance.factors import Dense, Form, Outer, Summed
from deltasam_fairseq.per_instance.layout import Layout
from deltasam_fairseq.per_instance.perturbation import Perturbation
from deltasam_fairseq.per_instance.rules.base import Call, LayerRule, layer_rule
from deltasam_fairseq.per_instance.sentence_linear import linear, sentence_linear


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
        return linear(call.input, params["weight"], params.get("bias"))

    def rows(self, call: Call, dims: int) -> int:  # noqa: D102
        return dims - 1

    def gradients(self, call: Call, delta: Tensor, layout: Layout) -> dict[str, Form | Summed]:  # noqa: D102
        weight = Outer(layout.listed(delta, 1), layout.listed(call.input, 1))
        return {"weight": weight, "bias": Summed(weight)}

    def perturbed(  # noqa: D102
        self,
        call: Call,
        params: Mapping[str, Tensor],
        moved: Mapping[str, Perturbation],
        layout: Layout,
    ) -> Tensor:
        weight, bias = moved.get("weight"), moved.get("bias")
        if weight is not None and bias is not None and bias.goes_with(weight):
            weight, bias = weight.with_ones(), None
        shift = None if bias is None else bias.dense()
        x = wide(call.input)
        if weight is not None and (weight.merges or _computes_wide(call)):
            own = {role: wide(param) for role, param in params.items()}
            return sentence_linear(x, own["weight"], own.get("bias"), weight, shift, layout)
        # The layer's own precision, then what is added in full; rounded once.
        plain = self.forward(call, params)
        total = wide(plain)
        if weight is not None:
            total = total + sentence_linear(x, None, None, weight, None, layout)
        if shift is not None:
            parts = layout.split(total)
            total = layout.join(parts + shift.view(len(parts), *[1] * (parts.dim() - 2), -1))
        # In the memory order of the plain result: dropout draws its masks in that order.
        return total.to(plain.dtype)


@layer_rule(torch.addmm)
class TransposedLinear(LayerRule):
    """``y_t = Wᵀ x_t + b``, as the Hugging Face Hub's ``Conv1D``."""

    def bind(  # noqa: D102
        self,
        covered: Callable[[Any], bool],
        input: Tensor,  # noqa: A002
        mat1: Tensor,
        mat2: Tensor,
        *,
        beta: float = 1,
        alpha: float = 1,
    ) -> Call:
        if input.dim() != 1 or beta != 1 or alpha != 1:
            raise Unsupported(
                "what is added to a product with a weight has to be a vector, without factors"
            )
        return Call(self, mat1, {"weight": mat2, "bias": input})

    def forward(self, call: Call, params: Mapping[str, Tensor]) -> Tensor:  # noqa: D102
        return torch.addmm(params["bias"], call.input, params["weight"])

    def rows(self, call: Call, dims: int) -> int:  # noqa: D102
        return 1

    def gradients(self, call: Call, delta: Tensor, layout: Layout) -> dict[str, Form | Summed]:  # noqa: D102
        delta = layout.listed(delta, 1)
        return {
            "weight": Outer(layout.listed(call.input, 1), delta),
            "bias": Dense(wide(delta).sum(1)),
        }

    def perturbed(  # noqa: D102
        self,
        call: Call,
        params: Mapping[str, Tensor],
        moved: Mapping[str, Perturbation],
        layout: Layout,
    ) -> Tensor:
        own = {"weight": params["weight"].t(), "bias": params["bias"]}
        turned = dict(moved)
        if "weight" in moved:
            turned["weight"] = moved["weight"].transposed()
        return LINEAR.perturbed(replace(call, rule=LINEAR), own, turned, layout)


LINEAR = Linear()


def _computes_wide(call: Call) -> bool:
    """Tell whether the layer computes in float32 or wider, as a product with factors does."""
    tensors = (call.input, *call.params.values())
    return all(t.dtype == wide(call.input).dtype for t in tensors) and is_full_precision(tensors)
