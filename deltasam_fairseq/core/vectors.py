"""Norms over a list of tensors, as if they were one long vector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


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
    norms = [torch.linalg.vector_norm(t.detach(), dtype=torch.float64).to(device) for t in tensors]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total
