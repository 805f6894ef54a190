"""A list of tensors as if it were one long vector.

Hundreds of parameters are hundreds of kernels for every step of an operation that goes
from one to the next; an operation on a list launches a few for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.core.precision import is_half

# What an operation on a list may allocate at once, bytes: little beside the copy of the
# parameters that a perturbation holds, and enough to keep a GPU busy.
LARGEST_GROUP = 64 * 2**20

# Since torch 2.4; before, squares of small float32 entries would vanish.
_NORMS_TAKE_DTYPE = any(
    argument.name == "dtype" for argument in torch.ops.aten._foreach_norm.Scalar._schema.arguments
)


def unique(tensors: Iterable[Tensor]) -> list[Tensor]:
    """List tensors once each, in order; a tied parameter is one parameter.

    Args:
        tensors: Any tensors.

    Returns:
        The same objects without repetitions.
    """
    seen: dict[int, Tensor] = {}
    for tensor in tensors:
        seen.setdefault(id(tensor), tensor)
    return list(seen.values())


def grouped(*lists: Sequence[Tensor], cut: bool = False) -> Iterator[tuple[list[Tensor], ...]]:
    """Group tensors for PyTorch's operations on lists, which take alike ones at once.

    Args:
        *lists: Lists of one length; what stands at one place in them stays together.
        cut: Whether groups are small, for operations with a result of their size: at most
            :data:`LARGEST_GROUP` bytes of the first list and a quarter of it, but at
            least one tensor.

    Yields:
        As many lists as were given, each of one device and dtype.
    """
    groups: dict[Any, list[tuple[Tensor, ...]]] = {}
    total = 0
    for row in zip(*lists, strict=True):
        groups.setdefault(tuple((t.device, t.dtype) for t in row), []).append(row)
        total += _bytes(row[0])
    room = min(LARGEST_GROUP, total // 4) if cut else total
    for rows in groups.values():
        taken, size = [rows[0]], _bytes(rows[0][0])
        for row in rows[1:]:
            if size + _bytes(row[0]) > room:
                yield _lists(taken)
                taken, size = [], 0
            taken.append(row)
            size += _bytes(row[0])
        yield _lists(taken)


def widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors of one dtype in float32 if that is of half precision.

    Args:
        tensors: Of one device and dtype.

    Returns:
        Themselves, or copies.
    """
    if not tensors or not is_half(tensors[0]):
        return list(tensors)
    copies = [torch.empty_like(t, dtype=torch.float32) for t in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return copies


def scaled_(tensors: Sequence[Tensor], factor: float | Tensor) -> None:
    """Multiply tensors of one device and dtype in place.

    Args:
        tensors: Changed.
        factor: A number, or a tensor that holds one; no value is read from a GPU.
    """
    if isinstance(factor, Tensor):
        torch._foreach_mul_(list(tensors), factor.to(tensors[0]))
    else:
        torch._foreach_mul_(list(tensors), factor)


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the L2 norm of each tensor, computed in float64.

    Args:
        tensors: Of one device and dtype.

    Returns:
        Float64 scalars on their device.
    """
    if _NORMS_TAKE_DTYPE:
        return list(torch._foreach_norm(list(tensors), 2, dtype=torch.float64))
    return [torch.linalg.vector_norm(t, dtype=torch.float64) for t in tensors]


@torch.no_grad()
def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of all entries of all tensors together.

    Computed in float64: squares of small float32 gradients would vanish, and
    the result depends little on how the entries are spread over tensors.

    Args:
        tensors: Tensors of any shapes on any devices; may be empty.

    Returns:
        Float64 scalar on the device of the first tensor (the CPU if there is
        none). Not finite if any entry is not finite.

    Example:
        >>> global_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
        tensor(5., dtype=torch.float64)
    """
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    device = tensors[0].device
    parts = [torch.stack(norms(group)).to(device) for (group,) in grouped(tensors)]
    total: Tensor = torch.linalg.vector_norm(torch.cat(parts))
    return total


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _lists(rows: Sequence[tuple[Tensor, ...]]) -> tuple[list[Tensor], ...]:
    return tuple(map(list, zip(*rows, strict=True)))
