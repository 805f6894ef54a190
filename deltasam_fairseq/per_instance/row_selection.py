"""Operations that may choose rows anew in every batch, so that owners are not the program's.

After ``h[mask]`` a row's sentence depends on the mask. Two batches with one
masked token in each sentence look as if the rows were the sentences, and the
third may have two of one and none of another. What is known of a layer behind
such an operation is therefore asked for in every batch (``layout_memory.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import EllipsisType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


def named(*names: str) -> set[Callable[..., Any]]:
    """Return PyTorch's functions and methods of some names."""
    places = (torch, Tensor)
    return {getattr(place, name) for place in places for name in names if hasattr(place, name)}


# Rows are chosen, or put, by the numbers in a tensor.
BY_NUMBER = named(
    *("gather", "index_add", "index_add_", "index_copy", "index_copy_", "index_put"),
    *("index_put_", "index_select", "masked_scatter", "masked_scatter_", "masked_select"),
    *("repeat_interleave", "scatter", "scatter_", "scatter_add", "scatter_add_", "take"),
    *("take_along_dim", "_pack_padded_sequence"),
)
# Pieces of any lengths, cut out one by one, become one list.
JOINS = named("cat", "concat", "concatenate", "stack", "hstack", "vstack", "row_stack")
# An index of these takes the same entries of every batch.
PLAIN = (int, slice, EllipsisType, type(None))


class Tables:
    """Constants that rows are looked up in, such as fairseq's sinusoidal positions.

    Features of a frozen encoder have no gradient either, but they are another object in every
    batch; a constant is the same one.
    """

    def __init__(self) -> None:
        self._seen = WeakTensorKeyDictionary()

    def knows(self, table: Tensor) -> bool:
        """Tell whether rows were looked up in this very tensor before, and remember it.

        Args:
            table: Not the result of covered parameters.

        Returns:
            False the first time: the batch is asked then, as the first ones are anyway.
        """
        known = table in self._seen
        self._seen[table] = True
        return known


def picks_rows(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tables: Tables) -> bool:
    """Tell whether a call may choose rows by what is in this batch.

    Args:
        func: A function that reached a torch function mode.
        args: As it was called; no covered parameter is among them.
        kwargs: As it was called.
        tables: Constants of earlier batches.

    Returns:
        Whether rows behind it may belong to other sentences in the next batch.
        True where one cannot tell: that costs time and is never wrong.
    """
    if func is Tensor.__getitem__:
        return chooses(args[1])
    if func is Tensor.__setitem__:
        # A number that is written over some rows leaves the others where they are.
        return chooses(args[1]) and isinstance(args[2], Tensor) and args[2].dim() > 0
    if func is F.embedding:
        table = kwargs.get("weight", args[1] if len(args) > 1 else None)
        constant = isinstance(table, Tensor) and table.grad_fn is None
        return not (constant and tables.knows(table))
    if func in (torch.index_select, Tensor.index_select) and args and _is_table(args[0]):
        return not tables.knows(args[0])
    if func in JOINS:
        return not _joins_features(func, args, kwargs)
    return func in BY_NUMBER


# The others are passed by without a call: there are hundreds in every pass.
MAY_PICK = BY_NUMBER | JOINS | {Tensor.__getitem__, Tensor.__setitem__, F.embedding}


def chooses(index: Any) -> bool:
    """Tell whether an index may take other entries of another batch."""
    parts = index if isinstance(index, tuple) else (index,)
    return not all(isinstance(part, PLAIN) for part in parts)


def _is_table(source: Any) -> bool:
    """Tell whether it may be a constant, as fairseq's sinusoidal positions are."""
    return not source.requires_grad and source.is_floating_point() and source.dim() == 2


def _joins_features(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether tensors are joined in their last dimension, which holds no sentences."""
    pieces = kwargs.get("tensors", args[0] if args else ())
    first = next(iter(pieces), None)
    if not isinstance(first, Tensor) or first.dim() < 2 or func.__name__.endswith("stack"):
        return False
    dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else 0))
    return dim in (-1, first.dim() - 1)
