"""Scale and shift of layer normalisation, and the scale of RMS normalisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from deltasam_fairseq.core.precision import wide
from deltasam_fairseq.per_instance.factors import Dense, Form
from deltasam_fairseq.per_instance.layout import Layout
from deltasam_fairseq.per_instance.perturbation import Perturbation
from deltasam_fairseq.per_instance.rules.base import Call, LayerRule, layer_rule


class Normalisation(LayerRule):
    """``y_t = s * z_t + b`` with z the normalised input: ``dl_i/ds = sum_t delta_it * z_it``."""

    def rows(self, call: Call, dims: int) -> int:  # noqa: D102
        return dims - len(call.options["shape"])

    def gradients(self, call: Call, delta: Tensor, layout: Layout) -> dict[str, Form]:  # noqa: D102
        own = len(call.options["shape"])
        shift = wide(layout.listed(delta, own))
        normal = layout.listed(self._normalised(call), own)
        return {"weight": Dense((shift * normal).sum(1)), "bias": Dense(shift.sum(1))}

    def perturbed(  # noqa: D102
        self,
        call: Call,
        params: Mapping[str, Tensor],
        moved: Mapping[str, Perturbation],
        layout: Layout,
    ) -> Tensor:
        plain = replace(call, input=wide(call.input))
        total = self.forward(plain, {role: wide(param) for role, param in params.items()})
        if "bias" in moved:
            total = total + layout.spread(moved["bias"].dense(), total.shape)
        if "weight" in moved:
            scale = layout.spread(moved["weight"].dense(), total.shape)
            total = torch.addcmul(total, self._normalised(call), scale)
        return total

    def _normalised(self, call: Call) -> Tensor:
        return self.forward(replace(call, input=wide(call.input)), {})


@layer_rule(F.layer_norm)
class LayerNorm(Normalisation):
    """``y_t = s * z_t + b`` with z of mean 0 and variance 1."""

    def bind(  # noqa: D102, PLR0917
        self,
        covered: Callable[[Any], bool],
        input: Tensor,  # noqa: A002
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Call:
        named = {"weight": weight, "bias": bias}
        params = {role: p for role, p in named.items() if p is not None}
        return Call(self, input, params, {"shape": list(normalized_shape), "eps": eps})

    def forward(self, call: Call, params: Mapping[str, Tensor]) -> Tensor:  # noqa: D102
        shape, eps = call.options["shape"], call.options["eps"]
        return F.layer_norm(call.input, shape, params.get("weight"), params.get("bias"), eps)


if hasattr(F, "rms_norm"):  # since torch 2.4

    @layer_rule(F.rms_norm)
    class RMSNorm(Normalisation):
        """``y_t = s * z_t`` with z the input over the root of its mean square."""

        def bind(  # noqa: D102
            self,
            covered: Callable[[Any], bool],
            input: Tensor,  # noqa: A002
            normalized_shape: Sequence[int],
            weight: Tensor | None = None,
            eps: float | None = None,
        ) -> Call:
            params = {} if weight is None else {"weight": weight}
            return Call(self, input, params, {"shape": list(normalized_shape), "eps": eps})

        def forward(self, call: Call, params: Mapping[str, Tensor]) -> Tensor:  # noqa: D102
            shape, eps = call.options["shape"], call.options["eps"]
            return F.rms_norm(call.input, shape, params.get("weight"), eps)
