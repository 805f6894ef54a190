"""Embeddings, and rows of a parameter that are picked by index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from deltasam_fairseq.per_instance.errors import Unsupported
from deltasam_fairseq.per_instance.factors import Form, Rows
from deltasam_fairseq.per_instance.layout import Layout, as_list
from deltasam_fairseq.per_instance.perturbation import Perturbation
from deltasam_fairseq.per_instance.rules.base import Call, LayerRule, layer_rule


class PickedRows(LayerRule):
    """``y_t = W[k_t]``, so ``dl_i/dW`` has ``delta_it`` added to its row ``k_it``."""

    def rows(self, call: Call, dims: int) -> int:  # noqa: D102
        return call.input.dim()

    def gradients(self, call: Call, delta: Tensor, layout: Layout) -> dict[str, Form]:  # noqa: D102
        padding = call.options["padding_idx"]
        if padding is not None:
            own = [1] * (delta.dim() - call.input.dim())
            delta = delta.masked_fill((call.input == padding).view(*call.input.shape, *own), 0)
        right = as_list(layout.split(delta), delta.dim() - call.input.dim()).flatten(2)
        return {"weight": Rows(as_list(layout.split(call.input), 0), right)}

    def perturbed(  # noqa: D102
        self,
        call: Call,
        params: Mapping[str, Tensor],
        moved: Mapping[str, Perturbation],
        layout: Layout,
    ) -> Tensor:
        plain = self.forward(call, params)
        if "weight" not in moved:
            return plain
        ids = layout.split(call.input)
        extra = moved["weight"].picked_rows(as_list(ids, 0))
        own = plain.shape[call.input.dim() :]
        return (plain + layout.join(extra.reshape(*ids.shape, *own))).to(plain.dtype)


@layer_rule(F.embedding)
class Embedding(PickedRows):
    """``torch.nn.Embedding``, fairseq's learned positions and the like."""

    def bind(  # noqa: D102, PLR0917
        self,
        covered: Callable[[Any], bool],
        input: Tensor,  # noqa: A002
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Call:
        if max_norm is not None or scale_grad_by_freq or sparse:
            raise Unsupported(
                "an embedding with max_norm, scale_grad_by_freq or sparse gradients "
                "has no batched perturbation"
            )
        if padding_idx is not None and padding_idx < 0:
            padding_idx += len(weight)
        return Call(self, input, {"weight": weight}, {"padding_idx": padding_idx})

    def forward(self, call: Call, params: Mapping[str, Tensor]) -> Tensor:  # noqa: D102
        return F.embedding(call.input, params["weight"], call.options["padding_idx"])


@layer_rule(torch.Tensor.__getitem__)
class Item(PickedRows):
    """``W[:length]`` and other choices of a parameter's rows: an embedding of their numbers."""

    def bind(self, covered: Callable[[Any], bool], tensor: Tensor, index: Any) -> Call:  # noqa: D102
        picks = isinstance(index, (int, slice)) or (
            isinstance(index, Tensor) and index.dtype == torch.int64
        )
        if tensor.dim() < 2 or not picks:
            raise Unsupported(
                "of a parameter's entries only rows can be picked, of one of two dimensions or more"
            )
        numbers = torch.arange(len(tensor), device=tensor.device)[index]
        return Call(self, numbers, {"weight": tensor}, {"padding_idx": None})

    def forward(self, call: Call, params: Mapping[str, Tensor]) -> Tensor:  # noqa: D102
        return params["weight"][call.input]
