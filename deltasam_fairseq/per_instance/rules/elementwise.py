"""Parameters that are added to or multiplied with activations, broadcast as PyTorch does."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.core.precision import wide
from deltasam_fairseq.per_instance.errors import Unsupported
from deltasam_fairseq.per_instance.factors import Dense, Form
from deltasam_fairseq.per_instance.layout import Layout
from deltasam_fairseq.per_instance.perturbation import Perturbation
from deltasam_fairseq.per_instance.rules.base import Call, LayerRule, layer_rule


class Elementwise(LayerRule):
    """What a sum and a product with a parameter have in common."""

    def bind(  # noqa: D102
        self,
        covered: Callable[[Any], bool],
        input: Any,
        other: Any,
        *,
        alpha: float = 1,  # noqa: A002
    ) -> Call:
        both = (input, other)
        if not all(isinstance(t, Tensor) for t in both) or all(map(covered, both)) or alpha != 1:
            raise Unsupported(
                "a parameter can be combined with an activation, not with a parameter, a number "
                "or a multiple"
            )
        param, activation = both if covered(input) else both[::-1]
        return Call(self, activation, {"weight": param})

    def rows(self, call: Call, dims: int) -> int:  # noqa: D102
        # From the parameter's first axis on that is not broadcast, the entries are features.
        shape = call.params["weight"].shape
        ones = next((n for n, size in enumerate(shape) if size != 1), len(shape))
        return dims - len(shape) + ones

    def gradients(self, call: Call, delta: Tensor, layout: Layout) -> dict[str, Form]:  # noqa: D102
        shape = call.params["weight"].shape
        parts = layout.split(wide(self._pulled(call, delta)))
        return {"weight": Dense(summed_to(parts, shape).reshape(len(parts), *shape))}

    def perturbed(  # noqa: D102
        self,
        call: Call,
        params: Mapping[str, Tensor],
        moved: Mapping[str, Perturbation],
        layout: Layout,
    ) -> Tensor:
        plain = self.forward(call, params)
        parts = layout.split(plain)
        shift = moved["weight"].dense()
        ones = [1] * (parts.dim() - shift.dim())
        spread = shift.view(len(parts), *ones, *shift.shape[1:]).expand(parts.shape)
        return (plain + self._pulled(call, layout.join(spread))).to(plain.dtype)

    @abstractmethod
    def _pulled(self, call: Call, tensor: Tensor) -> Tensor:
        """Multiply by the derivative of the result by the parameter, entry by entry."""


@layer_rule(torch.add)
@layer_rule(torch.Tensor.add)
class Sum(Elementwise):
    """``x + w``, a bias anywhere."""

    def forward(self, call: Call, params: Mapping[str, Tensor]) -> Tensor:  # noqa: D102
        return call.input + params["weight"]

    def _pulled(self, call: Call, tensor: Tensor) -> Tensor:
        return tensor


@layer_rule(torch.mul)
@layer_rule(torch.Tensor.mul)
class Product(Elementwise):
    """``x * w``, a scale anywhere."""

    def forward(self, call: Call, params: Mapping[str, Tensor]) -> Tensor:  # noqa: D102
        return call.input * params["weight"]

    def _pulled(self, call: Call, tensor: Tensor) -> Tensor:
        return tensor * wide(call.input)


def summed_to(parts: Tensor, shape: torch.Size) -> Tensor:
    """Sum ``(N, ...)`` over what a parameter of a shape was broadcast over."""
    rank = parts.dim() - 1
    full = [1] * (rank - len(shape)) + list(shape)
    if any(own not in (1, there) for own, there in zip(full, parts.shape[1:], strict=True)):
        raise Unsupported(f"a parameter of shape {tuple(shape)} has a row for every sentence")
    over = [d + 1 for d in range(rank) if full[d] == 1]
    return parts.sum(over, keepdim=True) if over else parts
