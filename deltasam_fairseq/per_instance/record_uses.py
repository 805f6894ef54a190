"""Every use of a parameter during a forward pass, seen through PyTorch's own door.

A torch function mode is asked before each operation in Python. So a functional
use of a weight is seen as well as a module's, and an operation that no rule
knows cannot slip by.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode

from deltasam_fairseq.per_instance.errors import Unsupported
from deltasam_fairseq.per_instance.rules.base import (
    DECOMPOSITIONS,
    LAYER_RULES,
    Call,
    operation,
)
from deltasam_fairseq.per_instance.rules.embedding import PickedRows
from deltasam_fairseq.per_instance.rules.shared import Shared, Spread, followed

# What asks a parameter for its shape, dtype or place and not for its values.
METADATA = {
    getattr(Tensor, name).__get__
    for name in ("device", "dtype", "grad_fn", "is_cuda", "is_leaf", "is_sparse", "itemsize")
    + ("layout", "nbytes", "ndim", "requires_grad", "shape")
} | {
    getattr(Tensor, name)
    for name in ("__len__", "dim", "element_size", "get_device", "is_contiguous")
    + ("is_floating_point", "ndimension", "nelement", "numel", "size", "stride")
    + ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")
}
# What returns the parameter itself where it has that type already.
CASTS = {Tensor.float, Tensor.double, Tensor.to, Tensor.type_as, Tensor.contiguous}
_CONTAINERS = (list, tuple, dict)


def _named(*names: str) -> set[Any]:
    places = (torch, Tensor)
    return {getattr(place, name) for place in places for name in names if hasattr(place, name)}


ATTENTION = torch.nn.functional.scaled_dot_product_attention
# Where a result that sentences share becomes one for each of them, by broadcasting or on its own.
BROADCASTS = _named("add", "add_", "where") | {ATTENTION}
EXPANSIONS = _named("expand", "expand_as", "broadcast_to")
# What may be done to such a result before.
FOLLOWED = _named(
    *("add", "contiguous", "double", "expand", "flatten", "float", "movedim", "permute"),
    *("reshape", "squeeze", "swapaxes", "to", "transpose", "type_as", "unflatten", "unsqueeze"),
    *("view", "where"),
)
# Where picked rows, such as ``W[:k]``, would be a matrix that all sentences share.
MATRIX_PRODUCTS = _named("matmul", "mm", "bmm") | {
    Tensor.__matmul__,
    Tensor.__rmatmul__,
    torch.nn.functional.linear,
}
USES_OF_SHARED = BROADCASTS | EXPANSIONS | FOLLOWED | MATRIX_PRODUCTS


class Watch(TorchFunctionMode):
    """A forward pass whose uses of parameters go through :meth:`use`.

    Args:
        names: Names of the covered parameters by ``id``.

    Attributes:
        multiplied: The matrix product that picked rows of a parameter went into,
            by the number of the call that picked them.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.multiplied: dict[int, str] = {}
        self.stand_ins: dict[int, Tensor] = {}
        self._shared: dict[int, Shared] = {}

    @abstractmethod
    def use(self, call: Call, *, spreads: Iterable[int] = ()) -> tuple[Tensor, int]:
        """Run one call.

        Args:
            call: The call.
            spreads: Numbers of the calls whose results it spreads over sentences.

        Returns:
            Its result and its number.
        """

    def pass_by(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Look at an operation that no covered parameter takes part in."""

    def covered(self, value: Any) -> bool:
        """Tell whether a value is a covered parameter."""
        return id(value) in self.names

    def name(self, param: Tensor) -> str:
        """Name a covered parameter."""
        return self.names[id(param)]

    def stand_in(self, param: Tensor) -> Tensor:
        """Return a view of a covered parameter; another tensor stands for itself."""
        if not self.covered(param):
            return param
        own = self.stand_ins.get(id(param))
        if own is None:
            own = self.stand_ins[id(param)] = param.view_as(param)
        return own

    def __torch_function__(  # noqa: D105
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        used = _among(args, self.names)
        if kwargs:
            used += _among(kwargs.values(), self.names)
        if not used:
            if self._shared and func in USES_OF_SHARED:
                return self._use_shared(func, args, kwargs)
            self.pass_by(func, args, kwargs)
            return func(*args, **kwargs)
        if func in METADATA:
            return func(*args, **kwargs)
        if func in CASTS and (same := func(*args, **kwargs)) is used[0]:
            return same
        path = operation(func)
        if path in DECOMPOSITIONS:
            with self:
                return DECOMPOSITIONS[path](*args, **kwargs)
        if path not in LAYER_RULES:
            raise Unsupported(
                f"{self._told(used)} in {path}, which has no layer rule (register one, see "
                "docs/per_instance.md, or run the loop over sentences)"
            )
        if not torch.is_grad_enabled() or _checkpointing():
            raise Unsupported(
                f"{self._told(used)} in {path} without a graph or inside torch.utils.checkpoint: "
                "activation checkpointing runs a layer again in the backward pass, out of the "
                "engine's sight"
            )
        try:
            call = LAYER_RULES.get(path).bind(self.covered, *args, **kwargs)
        except Unsupported as refusal:
            raise Unsupported(f"{self._told(used)} in {path}: {refusal}") from None
        if len(used) > sum(map(self.covered, call.params.values())):
            raise Unsupported(f"{self._told(used)} in {path} as an input")
        output, number = self.use(call)
        if isinstance(call.rule, PickedRows):
            self._shared[id(output)] = Shared.of(output, call, number)
        return output

    def _told(self, used: Sequence[Tensor]) -> str:
        unique = dict.fromkeys(map(self.name, used))
        return f"{' and '.join(unique)} {'is' if len(unique) == 1 else 'are'} used"

    def _use_shared(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run a function whose arguments may be results that sentences share."""
        if func in BROADCASTS:
            args, kwargs = self._spread_arguments(func, args, kwargs)
        self.pass_by(func, args, kwargs)
        output = func(*args, **kwargs)
        values = [*args, *kwargs.values()]
        shared = [own for value in values if (own := self._shared_result(value))]
        if not shared:
            return output
        if func in MATRIX_PRODUCTS:
            for own in shared:
                self.multiplied.update(dict.fromkeys(own.sources, operation(func)))
        elif func in EXPANSIONS and output.shape != shared[0].tensor.shape:
            return self._spread(shared[0], output.shape)
        elif func in FOLLOWED and all(map(self._is_constant, values)):
            self._shared[id(output)] = followed(func, args, kwargs, self._shared, output)
        return output

    def _shared_result(self, value: Any) -> Shared | None:
        found = self._shared.get(id(value))
        return found if found is not None and found.unchanged else None

    def _is_constant(self, value: Any) -> bool:
        """Tell whether a value is the same at all parameters, apart from what is followed."""
        return not (isinstance(value, Tensor) and value.requires_grad) or id(value) in self._shared

    def _spread_arguments(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Let shared results that are about to be broadcast be recorded spread out."""
        if func is ATTENTION:
            query = args[0] if args else kwargs["query"]
            shapes = [(*query.shape[:-2], 1, 1)]
        else:
            values = (*args, *kwargs.values())
            shapes = [value.shape for value in values if isinstance(value, Tensor)]

        def spread(value: Any) -> Any:
            shared = self._shared_result(value)
            shape = shared and shared.grows_to(shapes)
            return self._spread(shared, shape) if shared and shape else value

        return [spread(value) for value in args], {n: spread(v) for n, v in kwargs.items()}

    def _spread(self, shared: Shared, shape: torch.Size) -> Tensor:
        return self.use(Spread().bind(self.covered, shared, shape), spreads=shared.sources)[0]


def owned(output: Tensor) -> Tensor:
    """Return a result as a tensor of its own in the eyes of autograd, without a copy.

    A linear layer's result is a view. Changing a view in place, as fairseq scales
    its queries, rewrites the graph behind it: the edge that was noted would no
    longer be on the path to the losses, and the derivative of a product with
    every sentence's own weights would be lost.

    Args:
        output: Any result.

    Returns:
        The same values in the same memory.
    """
    if not output._is_view():
        return output
    own: Tensor = torch.ops.aten._unsafe_view.default(output, output.shape)
    return own


def _checkpointing() -> bool:
    """Tell whether PyTorch's checkpointing is among the callers."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


def _among(values: Iterable[Any], known: Mapping[int, Any]) -> list[Tensor]:
    """List what has one of the known ids, inside lists, tuples and dictionaries too."""
    # Called for every operation of a pass: the ids are those of tensors that are alive, so
    # that no other object has one, and need no look at what they belong to.
    found: list[Tensor] = []
    for value in values:
        if id(value) in known:
            found.append(value)
        elif isinstance(value, _CONTAINERS):
            found += _among(value.values() if isinstance(value, dict) else value, known)
    return found
