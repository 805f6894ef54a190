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
from deltasam_fairseq.per_instance.rules.embedding import PickedRows, Spread, broadcast

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
SUMS = {torch.add, Tensor.add, Tensor.add_}
# Where picked rows, such as ``W[:k]``, would be a matrix that all sentences share.
MATRIX_PRODUCTS = {
    getattr(place, name) for place in (torch, Tensor) for name in ("matmul", "mm", "bmm")
} | {Tensor.__matmul__, Tensor.__rmatmul__, torch.nn.functional.linear}


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
        self._picked: dict[int, tuple[Tensor, int, Call, int]] = {}

    @abstractmethod
    def use(self, call: Call, *, spreads: int | None = None) -> tuple[Tensor, int]:
        """Run one call.

        Args:
            call: The call.
            spreads: Number of the call whose rows it spreads over sentences.

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
            if self._picked and func in SUMS:
                args = self._spread(args)
            if self._picked and func in MATRIX_PRODUCTS:
                self._note_product(func, args)
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
            self._picked[id(output)] = (output, output._version, call, number)
        return output

    def _told(self, used: Sequence[Tensor]) -> str:
        unique = dict.fromkeys(map(self.name, used))
        return f"{' and '.join(unique)} {'is' if len(unique) == 1 else 'are'} used"

    def _note_product(self, func: Any, args: Sequence[Any]) -> None:
        for value in args:
            if id(value) in self._picked:
                number = self._picked[id(value)][3]
                self.multiplied[number] = operation(func)

    def _spread(self, args: Sequence[Any]) -> Sequence[Any]:
        """Let rows that are about to be broadcast in a sum be recorded spread out."""
        args = list(args)
        for place, value in enumerate(args[:2]):
            other = args[1 - place] if len(args) > 1 else None
            if id(value) not in self._picked or not isinstance(other, Tensor):
                continue
            source, version, call, number = self._picked[id(value)]
            grows = broadcast(source.shape, other.shape) != source.shape
            if grows and source._version == version:
                spread = Spread().bind(self.covered, call, source, other)
                args[place], _ = self.use(spread, spreads=number)
        return args


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
