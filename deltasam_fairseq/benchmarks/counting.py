"""What a GPU would be asked to do, counted on any machine.

A torch dispatch mode sees every operation below autograd, those of backward passes included.
It does not see ``tolist``, ``numpy`` and ``cpu`` of tensors on the CPU, which would copy from a
GPU: a torch function mode above autograd does.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PACKAGE = str(Path(__file__).parents[1])
# The program needs the value or the size of their result.
_WAITS = {
    "aten::_local_scalar_dense",
    "aten::_unique",
    "aten::_unique2",
    "aten::bincount",
    "aten::equal",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_consecutive",
    "aten::unique_dim",
}
# Neither views nor work: they make memory, or answer without reading any.
_IDLE = {
    "aten::_unsafe_view",
    "aten::alias",
    "aten::detach",
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::lift_fresh",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::promote_types",
    "aten::result_type",
    "profiler::_record_function_enter_new",
    "profiler::_record_function_exit",
}
_COPIES_TO_HOST = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__}


@dataclass
class Counts:
    """What a piece of work asked for.

    Args:
        operations: Operations that were dispatched; one on a list of tensors is one.
        launches: Those of them that compute or copy something: all but views.
        allocations: Tensors with memory of their own that they made.
        synchronizations: How often the program waited for a value.
        places: Where in the package it waited, or where else; how often each.
    """

    operations: int = 0
    launches: int = 0
    allocations: int = 0
    synchronizations: int = 0
    places: Counter[str] = field(default_factory=Counter)


def counted(work: Callable[[], object]) -> Counts:
    """Return the counts of a piece of work, which runs once.

    Example:
        A product, a sum over it, and the program reads the result:

        >>> counts = counted(lambda: (torch.ones(2) * 2).sum().item())
        >>> counts.operations, counts.allocations, counts.synchronizations
        (4, 3, 1)
    """
    counts = Counts()
    with _Copies(counts), _Operations(counts):
        work()
    return counts


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, counts: Counts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        counts = self._counts
        counts.operations += 1
        counts.launches += not func.is_view and func._schema.name not in _IDLE
        if _waits(func, args, kwargs):
            _note(counts)
        if not func.is_view:
            before = {_memory(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            made = {_memory(t) for t in tree_leaves(result) if isinstance(t, Tensor)}
            counts.allocations += len(made - before)
        return result


class _Copies(TorchFunctionMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        before = self._counts.synchronizations
        result = func(*args, **(kwargs or {}))
        if func in _COPIES_TO_HOST and self._counts.synchronizations == before:
            _note(self._counts)
        return result


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _waits(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    name = func._schema.name
    if name in _WAITS:
        return True
    if name == "aten::repeat_interleave":
        return isinstance(args[0], Tensor) and kwargs.get("output_size") is None
    if name in {"aten::_to_copy", "aten::copy_"}:
        source, target = args[-1], kwargs.get("device", args[0])
        return source.is_cuda and torch.device(getattr(target, "device", target)).type == "cpu"
    if not name.startswith(("aten::index", "aten::_index_put", "aten::_unsafe_index")):
        return False
    picks = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    if not any(p is not None and p.dtype in {torch.bool, torch.uint8} for p in picks):
        return False
    # One number for all entries of a mask is filled in without counting them.
    return "put" not in name or args[2].numel() != 1 or bool(len(args) > 3 and args[3])


def _note(counts: Counts) -> None:
    """Count a wait at the package's innermost frame, or else at the innermost of another's."""
    counts.synchronizations += 1
    frames = [f for f, _ in traceback.walk_stack(None) if not _is_torchs(f.f_code.co_filename)]
    own = [frame for frame in frames if frame.f_code.co_filename.startswith(_PACKAGE)]
    for frame in (own or frames)[:1]:
        name = Path(frame.f_code.co_filename).name
        counts.places[f"{name}:{frame.f_code.co_name}"] += 1


def _is_torchs(file: str) -> bool:
    return file == __file__ or file.startswith(str(Path(torch.__file__).parent))
