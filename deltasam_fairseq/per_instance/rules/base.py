"""What the batched engine has to know about an operation on parameters.

A rule belongs to a function, not to a module: fairseq's heads and embeddings
call ``F.linear(x, self.weight) + self.bias`` themselves, and a rule for
``torch.nn.Linear`` would never see it. To add one, in a module that is
imported before training::

    @layer_rule(torch.nn.functional.bilinear)
    class Bilinear(LayerRule): ...
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.overrides import resolve_name

from deltasam_fairseq.per_instance.factors import Form, Summed
from deltasam_fairseq.per_instance.layout import Layout
from deltasam_fairseq.per_instance.perturbation import Perturbation
from deltasam_fairseq.registry import Registry


@dataclass
class Call:
    """One call of a function, taken apart.

    Args:
        rule: The rule that took it apart.
        input: What the parameters act on: activations, or token ids.
        params: The arguments that may be parameters, by role.
        options: The other arguments.
    """

    rule: LayerRule
    input: Tensor
    params: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)


class LayerRule(ABC):
    """How a function uses its parameters: recorded, measured, perturbed."""

    @abstractmethod
    def bind(self, covered: Callable[[Any], bool], *args: Any, **kwargs: Any) -> Call:
        """Take a call's arguments apart.

        Args:
            covered: Tells whether an argument is a parameter of the engine's.
            *args: As the function was called.
            **kwargs: As the function was called.

        Returns:
            The call.
        """

    @abstractmethod
    def forward(self, call: Call, params: Mapping[str, Tensor]) -> Tensor:
        """Compute what the function computes.

        Args:
            call: The call.
            params: Stand-ins for its parameters, by role.

        Returns:
            The function's result.
        """

    @abstractmethod
    def rows(self, call: Call, dims: int) -> int:
        """Say where the sentences can be.

        Args:
            call: The call.
            dims: How many dimensions its output has.

        Returns:
            How many of the output's first dimensions may hold them.
        """

    @abstractmethod
    def gradients(self, call: Call, delta: Tensor, layout: Layout) -> Mapping[str, Form | Summed]:
        """Return each parameter's gradients, sentence by sentence.

        Args:
            call: The call.
            delta: Gradient of the sum of losses at the output.
            layout: Where the sentences are in the output.

        Returns:
            One form by role.
        """

    @abstractmethod
    def perturbed(
        self,
        call: Call,
        params: Mapping[str, Tensor],
        moved: Mapping[str, Perturbation],
        layout: Layout,
    ) -> Tensor:
        """Compute the function with every sentence's own parameters.

        Args:
            call: The call.
            params: Stand-ins for its parameters, by role.
            moved: Perturbations by role; a role that is not there stays.
            layout: Where the sentences are in the output.

        Returns:
            The result, of the shape of :meth:`forward`'s, not yet rounded to its dtype.
        """


LAYER_RULES: Registry[LayerRule] = Registry("operation with a layer rule")


def layer_rule(function: Callable[..., Any]) -> Callable[[type[LayerRule]], type[LayerRule]]:
    """Register a rule for a function that PyTorch lets be overridden.

    Args:
        function: Such as ``torch.nn.functional.linear`` or ``torch.Tensor.add``.

    Returns:
        A decorator for the rule's class, which is made without arguments.
    """

    def store(rule: type[LayerRule]) -> type[LayerRule]:
        LAYER_RULES.register(operation(function), description=rule.__doc__ or "")(rule())
        return rule

    return store


# Functions of several layers, as functions of the same arguments that call these one by one.
DECOMPOSITIONS: dict[str, Callable[..., Any]] = {}


def decomposition(
    function: Callable[..., Any],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register what to call in place of a function that hides several layers.

    Args:
        function: Such as ``torch.nn.functional.multi_head_attention_forward``.

    Returns:
        A decorator for a function of the same arguments and result.
    """

    def store(parts: Callable[..., Any]) -> Callable[..., Any]:
        DECOMPOSITIONS[operation(function)] = parts
        return parts

    return store


@functools.cache  # PyTorch's own table is slow to ask
def operation(function: Callable[..., Any]) -> str:
    """Name a function of PyTorch.

    Args:
        function: A function that reached a torch function mode.

    Returns:
        Its path, such as ``torch.nn.functional.linear``.
    """
    name: str = resolve_name(function) or getattr(function, "__name__", repr(function))
    return name
