"""Weights moved in place and put back bit for bit.

Perturbing is borrowing: parameters keep their storage (DDP buckets, fused
optimizers, fp32 master copies and CUDA graphs hold on to it), and whatever
happens in between, the saved values are copied back. Subtracting the
perturbation again would not do: it changes a fraction of the weights by a
rounding error every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Borrowed:
    """Parameters that were moved, with the values they had before.

    Moving reuses the buffers of the direction: afterwards each direction
    tensor holds the saved values of its parameter, so a perturbation costs no
    memory beyond its own direction.

    Args:
        params: Parameters to move, each once; changed in place.
        direction: One tensor per parameter, same shape, dtype and device;
            consumed: do not read it afterwards. ``None`` leaves its parameter
            alone.
        scale: Factor on the direction. A number or a scalar tensor.

    Raises:
        ValueError: If the lists differ in length, or a direction's shape,
            dtype or device differs from its parameter's.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        direction: Sequence[Tensor | None],
        scale: float | Tensor = 1.0,
    ) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []
        try:
            with torch.no_grad():
                for param, buffer in _paired(params, direction):
                    saved = param.detach().clone()
                    self._pairs.append((param, saved))
                    param.copy_(buffer.mul_(scale).add_(saved))
                    buffer.copy_(saved)
                    self._pairs[-1] = (param, buffer)
            _forget_casts()
        except BaseException:
            self.give_back()
            raise

    def mirror(self) -> None:
        """Move from ``w + d`` to ``w - d``: the other side of the saved point.

        Computed as ``2 w - (w + d)``, so it needs no second buffer and mirrors
        the displacement as it was rounded.
        """
        with torch.no_grad():
            for param, saved in self._pairs:
                param.mul_(-1).add_(saved, alpha=2)
        _forget_casts()

    def give_back(self) -> None:
        """Copy the saved values back. A second call does nothing."""
        with torch.no_grad():
            for param, saved in self._pairs:
                param.copy_(saved)
        self._pairs = []
        _forget_casts()


@contextmanager
def perturbed(
    params: Sequence[Tensor],
    direction: Sequence[Tensor | None],
    scale: float | Tensor = 1.0,
) -> Iterator[Borrowed]:
    """Run a block at ``params + scale * direction``.

    Both the forward and the backward pass of a graph belong inside the block:
    PyTorch saves a parameter itself for the backward pass, not its value.

    Args:
        params: Parameters to move, each once; changed in place.
        direction: One tensor per parameter, or ``None`` to leave one alone;
            its buffers are consumed.
        scale: Factor on the direction.

    Yields:
        The :class:`Borrowed` record, whose ``mirror`` switches sides.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> with perturbed([w], [torch.tensor([0.5, 0.0])]):
        ...     print(w.detach())
        tensor([1.5000, 2.0000])
        >>> w.detach()
        tensor([1., 2.])
    """
    borrowed = Borrowed(params, direction, scale)
    try:
        yield borrowed
    finally:
        borrowed.give_back()


def _paired(
    params: Sequence[Tensor], direction: Sequence[Tensor | None]
) -> list[tuple[Tensor, Tensor]]:
    if len(params) != len(direction):
        raise ValueError(f"{len(params)} parameters but {len(direction)} direction tensors")
    pairs = []
    for position, (param, step) in enumerate(zip(params, direction, strict=True)):
        if step is None:
            continue
        if (step.shape, step.dtype, step.device) != (param.shape, param.dtype, param.device):
            raise ValueError(
                f"direction {position} is {tuple(step.shape)} {step.dtype} on {step.device}, "
                f"its parameter {tuple(param.shape)} {param.dtype} on {param.device}"
            )
        pairs.append((param, step))
    return pairs


def _forget_casts() -> None:
    """Drop autocast's half-precision copies of weights, which are those before a move."""
    torch.clear_autocast_cache()
