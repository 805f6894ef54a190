"""Every use of a parameter during a forward pass, seen through PyTorch's own door.

A torch function mode is asked before each operation in Python. So a functional
use of a weight is seen as well as a module's, and an operation that no rule
knows cannot slip by.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode

from deltasam_fairseq.per_instance.errors import Unsupported
from deltasam_fairseq.per_instance.row_selection import chooses, named
from deltasam_fairseq.per_instance.rules.base import (
    DECOMPOSITIONS,
    LAYER_RULES,
    Call,
    operation,
)
from deltasam_fairseq.per_instance.rules.embedding import PickedRows
from deltasam_fairseq.per_instance.rules.shared import Shared, Spread, Whole, followed

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

BATCHED_PRODUCTS = named("matmul", "__matmul__")
ATTENTION = torch.nn.functional.scaled_dot_product_attention
# Where a result that sentences share becomes one for each of them, by broadcasting or on its own.
BROADCASTS = (
    named("add", "add_", "div", "mul", "mul_", "sub", "sub_", "where")
    | BATCHED_PRODUCTS
    | {ATTENTION}
)
EXPANSIONS = named("broadcast_to", "expand", "expand_as")
# What may be done to such a result before, and what else to one of parameters alone.
FOLLOWED = named(
    *("add", "contiguous", "div", "double", "expand", "flatten", "float", "movedim", "mul"),
    *("neg", "permute", "reshape", "squeeze", "sub", "swapaxes", "to", "transpose", "type_as"),
    *("unflatten", "unsqueeze", "view", "where"),
) | {Tensor.__getitem__}
LAYERS = {torch.nn.functional.linear, torch.nn.functional.layer_norm}
DROPOUT, REPEAT = torch.nn.functional.dropout, Tensor.repeat
# Where picked rows, such as ``W[:k]``, would be a matrix that all sentences share.
MATRIX_PRODUCTS = named("matmul", "mm", "bmm") | {
    Tensor.__matmul__,
    Tensor.__rmatmul__,
    torch.nn.functional.linear,
}
USES_OF_SHARED = BROADCASTS | EXPANSIONS | FOLLOWED | LAYERS | MATRIX_PRODUCTS | {DROPOUT, REPEAT}


class Watch(TorchFunctionMode):
    """A forward pass whose uses of parameters go through :meth:`use`.

    Args:
        names: Names of the covered parameters by ``id``.

    Attributes:
        multiplied: The matrix product that picked rows of a parameter went into,
            by the number of the call that picked them.
        otherwise: A function that something of parameters alone went into and that is
            not followed, by the number of the call that it began with.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.multiplied: dict[int, str] = {}
        self.stand_ins: dict[int, Tensor] = {}
        self.otherwise: dict[int, str] = {}
        self._shared: dict[int, Shared] = {}
        self._has_wholes = False

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
            if self._has_wholes and func not in METADATA:
                self._note_other_uses(func, args, kwargs)
            self.pass_by(func, args, kwargs)
            return func(*args, **kwargs)
        if func in METADATA:
            return func(*args, **kwargs)
        if func in CASTS and (same := func(*args, **kwargs)) is used[0]:
            return same
        return self._use_parameters(func, args, kwargs, used)

    def _use_parameters(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], used: Sequence[Tensor]
    ) -> Any:
        """Run a function that covered parameters are arguments of."""
        path = operation(func)
        if path in DECOMPOSITIONS:
            with self:
                return DECOMPOSITIONS[path](*args, **kwargs)
        told = f"{self._told(used)} in {path}"
        refusal = (
            f"{told} as an input"
            if path in LAYER_RULES
            else f"{told}, which has no layer rule (register one, see docs/per_instance.md, or run "
            "the loop over sentences)"
        )
        of_parameters = self._is_of_parameters(func, args, kwargs)
        if path not in LAYER_RULES and not of_parameters:
            raise Unsupported(refusal)
        if not torch.is_grad_enabled() or _checkpointing():
            raise Unsupported(
                f"{told} without a graph or inside torch.utils.checkpoint: activation "
                "checkpointing runs a layer again in the backward pass, out of the engine's sight"
            )
        if of_parameters:
            return self._use_shared(
                func,
                [self._whole(value, refusal) for value in args],
                {name: self._whole(value, refusal) for name, value in kwargs.items()},
            )
        try:
            call = LAYER_RULES.get(path).bind(self.covered, *args, **kwargs)
        except Unsupported as error:
            raise Unsupported(f"{told}: {error}") from None
        if len(used) > sum(map(self.covered, call.params.values())):
            raise Unsupported(refusal)
        output, number = self.use(call)
        if isinstance(call.rule, PickedRows):
            self._shared[id(output)] = Shared.of(output, call, number)
        return output

    def _told(self, used: Sequence[Tensor]) -> str:
        unique = dict.fromkeys(map(self.name, used))
        return f"{' and '.join(unique)} {'is' if len(unique) == 1 else 'are'} used"

    def _is_of_parameters(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Tell whether a function computes something from parameters alone."""
        if func in LAYERS:
            return bool(args) and self._comes_of_parameters(args[0])
        known = func in FOLLOWED or func is DROPOUT
        if not known or (func is Tensor.__getitem__ and not _is_view(args[1])):
            return False
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        return all(map(self._comes_of_parameters, tensors))

    def _comes_of_parameters(self, value: Any) -> bool:
        shared = self._shared_result(value)
        return self.covered(value) or (shared is not None and shared.is_of_parameters)

    def _whole(self, value: Any, refusal: str) -> Any:
        """Record a parameter as the beginning of what is computed from parameters alone."""
        if not self.covered(value):
            return value
        call = Whole().bind(self.covered, value, refusal)
        output, number = self.use(call)
        self._has_wholes = True
        tensor = output[0]
        begun = Shared.of(output, call, number)
        self._shared[id(tensor)] = replace(
            begun, tensor=tensor, compute=lambda own: begun.compute(own)[0]
        )
        return tensor

    def _use_shared(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run a function whose arguments may be results that sentences share."""
        first = self._shared_result(args[0]) if args else None
        if first is not None and first.is_of_parameters:
            if func is DROPOUT:
                # The mask is a constant.
                mask = func(torch.ones_like(first.tensor), *args[1:], **kwargs)
                return self._use_shared(torch.mul, [first.tensor, mask], {})
            if func is REPEAT:
                return self._repeated(first, *args[1:], **kwargs)
        if func in BROADCASTS:
            args, kwargs = self._spread_arguments(func, args, kwargs)
        self.pass_by(func, args, kwargs)
        output = func(*args, **kwargs)
        if not (isinstance(output, Tensor) and output.requires_grad):
            if not torch.is_grad_enabled():
                self._note_other_uses(func, args, kwargs)
            return output  # as of ``mask.type_as(rows)``
        values = [*args, *kwargs.values()]
        shared = [own for value in values if (own := self._shared_result(value))]
        if func in EXPANSIONS and first is not None and output.shape != first.tensor.shape:
            return self._spread(first, output.shape)
        if shared and self._is_followed(func, values, shared):
            self._shared[id(output)] = followed(func, args, kwargs, self._shared, output)
        else:
            self._note_other_uses(func, args, kwargs)
            if func in MATRIX_PRODUCTS:
                for own in shared:
                    self.multiplied.update(dict.fromkeys(own.sources, operation(func)))
        return output

    def _note_other_uses(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Note where something of parameters alone is used otherwise than is followed."""
        for shared in (self._shared[id(value)] for value in _among([args, kwargs], self._shared)):
            if shared.is_of_parameters:
                self.otherwise.update(dict.fromkeys(shared.sources, operation(func)))

    def _repeated(self, shared: Shared, *sizes: Any) -> Any:
        """Repeat a result: an expansion of one that has a dimension more for each."""
        counts = sizes[0] if isinstance(sizes[0], _CONTAINERS) else sizes
        shape = [1] * (len(counts) - shared.tensor.dim()) + list(shared.tensor.shape)
        apart = [size for own in shape for size in (1, own)]
        grown = [size for count, own in zip(counts, shape, strict=True) for size in (count, own)]
        whole = [count * own for count, own in zip(counts, shape, strict=True)]
        result = self._use_shared(Tensor.reshape, [shared.tensor, apart], {})
        result = self._use_shared(Tensor.expand, [result, grown], {})
        return self._use_shared(Tensor.reshape, [result, whole], {})

    def _is_followed(self, func: Any, values: Sequence[Any], shared: Sequence[Shared]) -> bool:
        of_parameters = all(own.is_of_parameters for own in shared)
        if func is Tensor.__getitem__ and chooses(values[1]):
            return False
        known = func in FOLLOWED or (of_parameters and func in LAYERS)
        return known and all(map(self._is_constant, values))

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
        values = (*args, *kwargs.values())
        shapes = [tuple(value.shape) for value in values if isinstance(value, Tensor)]
        if func is ATTENTION or func in BATCHED_PRODUCTS:
            # Of matrices, whose own dimensions are not broadcast.
            shapes = [(*shape[:-2], 1, 1) for shape in shapes]

        def spread(value: Any) -> Any:
            shared = self._shared_result(value)
            if shared is None or (func in BATCHED_PRODUCTS and shared.tensor.dim() < 3):
                return value
            shape = shared.grows_to(shapes)
            return value if shape is None else self._spread(shared, shape)

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


def _is_view(index: Any) -> bool:
    """Tell whether an index does something else than to pick rows."""
    return (index is None or isinstance(index, tuple)) and not chooses(index)


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
