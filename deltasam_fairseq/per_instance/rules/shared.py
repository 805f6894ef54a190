"""Results that all sentences share, such as positions, until they meet the activations.

A row of them belongs to no sentence: its gradient is a sum over all. Where such a
result is broadcast, the gradient behind the broadcast still has a part for every
sentence. It is therefore recorded there, as a call of its own that takes the place of
those that the result was computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.core.precision import wide
from deltasam_fairseq.per_instance.factors import Dense, Form, Summed
from deltasam_fairseq.per_instance.layout import Layout, Strided
from deltasam_fairseq.per_instance.perturbation import Perturbation
from deltasam_fairseq.per_instance.rules.base import Call, LayerRule
from deltasam_fairseq.per_instance.rules.elementwise import summed_to

Results = Mapping[int, Tensor]


@dataclass(frozen=True)
class Shared:
    """A result that may be the same for all sentences.

    Args:
        tensor: The result.
        version: Its version; another one later means that it was changed in place.
        sources: The calls that it was computed from, by number; each has one parameter.
        compute: Computes it from the results of these calls.
    """

    tensor: Tensor
    version: int
    sources: Mapping[int, Call]
    compute: Callable[[Results], Tensor]

    @classmethod
    def of(cls, output: Tensor, call: Call, number: int) -> Shared:
        """Begin with the result of a call."""
        return cls(output, output._version, {number: replace(call)}, itemgetter(number))

    @property
    def is_of_parameters(self) -> bool:
        """Whether it was computed from parameters alone, and nothing was looked up."""
        return all(isinstance(source.rule, Whole) for source in self.sources.values())

    @property
    def unchanged(self) -> bool:
        """Whether nothing was written into the tensor since."""
        return self.tensor._version == self.version

    def grows_to(self, others: Iterable[Tensor | Sequence[int]]) -> torch.Size | None:
        """Return the shape that it is broadcast to beside others, unless it is its own."""
        shapes = (other.shape if isinstance(other, Tensor) else other for other in others)
        shape: torch.Size = torch.broadcast_shapes(self.tensor.shape, *shapes)  # type: ignore[no-untyped-call]
        return None if shape == self.tensor.shape else shape


def followed(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    known: Mapping[int, Shared],
    output: Tensor,
) -> Shared:
    """Describe what a function made of shared results.

    Args:
        func: The function.
        args: As it was called.
        kwargs: As it was called.
        known: Shared results by ``id``, at least one of which is an argument.
        output: What it returned.

    Returns:
        The result with the sources of those in the arguments.
    """
    sources: dict[int, Call] = {}

    def later(value: Any) -> Callable[[Results], Any]:
        shared = known.get(id(value))
        if shared is None:
            return lambda _: value
        sources.update(shared.sources)
        return shared.compute

    positional = [later(value) for value in args]
    named = {name: later(value) for name, value in kwargs.items()}

    def compute(own: Results) -> Tensor:
        result: Tensor = func(
            *(value(own) for value in positional), **{n: value(own) for n, value in named.items()}
        )
        return result

    return Shared(output, output._version, sources, compute)


class Whole(LayerRule):
    """A parameter as it is, where something is computed from parameters alone."""

    def bind(  # noqa: D102
        self, covered: Callable[[Any], bool], weight: Tensor, reason: str
    ) -> Call:
        alone = torch.zeros(1, dtype=torch.int64, device=weight.device)
        return Call(self, alone, {"weight": weight}, {"reason": reason})

    def forward(self, call: Call, params: Mapping[str, Tensor]) -> Tensor:  # noqa: D102
        weight = params["weight"]
        return weight.expand(*call.input.shape, *weight.shape)

    def rows(self, call: Call, dims: int) -> int:  # noqa: D102
        return call.input.dim()

    def gradients(self, call: Call, delta: Tensor, layout: Layout) -> dict[str, Form | Summed]:  # noqa: D102
        shape = call.params["weight"].shape
        parts = layout.split(wide(delta))
        return {"weight": Dense(parts.reshape(len(parts), -1, *shape).sum(1))}

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
        parts, shift = layout.split(plain), moved["weight"].dense()
        ones = [1] * (parts.dim() - shift.dim())
        return layout.join(parts + shift.view(len(parts), *ones, *shift.shape[1:]))


class Spread(LayerRule):
    """A shared result, broadcast over the sentences."""

    def bind(  # noqa: D102
        self, covered: Callable[[Any], bool], shared: Shared, shape: torch.Size
    ) -> Call:
        params = {str(n): source.params["weight"] for n, source in shared.sources.items()}
        options = {"shared": replace(shared, tensor=shared.tensor.detach()), "shape": shape}
        return Call(self, shared.tensor, params, options)

    def forward(self, call: Call, params: Mapping[str, Tensor]) -> Tensor:  # noqa: D102
        expanded: Tensor = call.input.expand(call.options["shape"])
        return expanded

    def rows(self, call: Call, dims: int) -> int:  # noqa: D102
        return 1 + max(dim for dim in range(dims) if self._grows(call, dim))

    def is_over_sentences(self, call: Call, layout: Layout) -> bool:
        """Tell whether the sentences are where the result was broadcast, and not in itself."""
        dim = layout.dim if isinstance(layout, Strided) else 0
        return self._grows(call, dim)

    def gradients(self, call: Call, delta: Tensor, layout: Layout) -> dict[str, Form | Summed]:  # noqa: D102
        shape = call.options["shared"].tensor.shape
        own = summed_to(layout.split(wide(delta)), shape).reshape(layout.count, *shape)
        forms: dict[str, Form | Summed] = {}
        for number, gradient in self._pulled_back(call, own).items():
            source = _for_every_sentence(call.options["shared"].sources[number], layout.count)
            own_forms = source.rule.gradients(source, gradient, Strided(0, layout.count))
            forms[str(number)] = own_forms["weight"]
        return forms

    def pulled_back(self, call: Call, delta: Tensor) -> dict[int, Tensor]:
        """Bring the gradient of the sum of losses back to the results of the sources.

        Args:
            call: The call.
            delta: At its output, float32 or wider.

        Returns:
            The gradients by the sources' numbers.
        """
        whole = delta.sum_to_size(call.options["shared"].tensor.shape)
        return {n: found[0] for n, found in self._pulled_back(call, whole[None]).items()}

    def _pulled_back(self, call: Call, gradients: Tensor) -> dict[int, Tensor]:
        shared: Shared = call.options["shared"]
        own = {}
        for number, source in shared.sources.items():
            plain = source.rule.forward(source, source.params).detach()
            own[number] = wide(plain).requires_grad_()
        with torch.enable_grad():
            value = shared.compute(own)
            found = torch.autograd.grad(
                value, list(own.values()), gradients.to(value.dtype), is_grads_batched=True
            )
        return dict(zip(own, found, strict=True))

    def perturbed(  # noqa: D102
        self,
        call: Call,
        params: Mapping[str, Tensor],
        moved: Mapping[str, Perturbation],
        layout: Layout,
    ) -> Tensor:
        shared: Shared = call.options["shared"]
        own = {}
        for number, source in shared.sources.items():
            every, role = _for_every_sentence(source, layout.count), str(number)
            move = {"weight": moved[role]} if role in moved else {}
            first = Strided(0, layout.count)
            own[number] = wide(source.rule.perturbed(every, {"weight": params[role]}, move, first))
        # Not vmap: older torches have none where a caller's hooks pack saved tensors.
        values = torch.stack(
            [shared.compute({n: one[i] for n, one in own.items()}) for i in range(layout.count)]
        )
        shape = layout.split(self.forward(call, params)).shape
        ones = [1] * (len(shape) - values.dim())
        spread = values.reshape(len(values), *ones, *values.shape[1:]).expand(shape)
        return layout.join(spread).to(shared.tensor.dtype)

    @staticmethod
    def _grows(call: Call, dim: int) -> bool:
        own, shape = call.options["shared"].tensor.shape, call.options["shape"]
        place = dim - (len(shape) - len(own))
        return place < 0 or own[place] != shape[dim]


def _for_every_sentence(source: Call, count: int) -> Call:
    return replace(source, input=source.input.expand(count, *source.input.shape))
