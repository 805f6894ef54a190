"""Weights moved in place and put back bit for bit.

Perturbing is borrowing: parameters keep their storage (DDP buckets, fused
optimizers, fp32 master copies and CUDA graphs hold on to it), and whatever
happens in between, the saved values are copied back. Subtracting the
perturbation again would not do: it changes a fraction of the weights by a
rounding error every step.

Half-precision weights are coarser than most of a perturbation, so they are
moved to ``cast(w + d)``, the sum taken in float32 from the master copy of w
where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from deltasam_fairseq.core.precision import is_half
from deltasam_fairseq.core.vectors import grouped, norms, scaled_, widened

# The records whose parameters are moved at the moment, the oldest first.
_moved_now: list[Borrowed] = []


class Realised(NamedTuple):
    """What rounding left of a displacement.

    Attributes:
        share: L2 norm of the displacement as rounded over that of the one asked
            for; 1 if nothing was lost, 0 if no weight moved.
        cosine: Cosine of the angle between the two; 0 if no weight moved.
    """

    share: float
    cosine: float


class Borrowed:
    """Parameters that were moved, with the values they had before.

    Moving reuses the buffers of the direction: afterwards each direction
    tensor holds the saved values of its parameter, so a perturbation costs no
    memory beyond its own direction.

    Args:
        params: Parameters to move, each once; changed in place.
        direction: One tensor per parameter, same shape and device, of its dtype
            or float32; consumed: do not read it afterwards. ``None`` leaves
            its parameter alone.
        scale: Factor on the direction. A number or a scalar tensor.
        masters: Float32 copies of half-precision parameters, not changed:
            a parameter becomes ``cast(master + scale * direction)``.
        measure: Whether to compute :attr:`realised`.

    Attributes:
        realised: What rounding left of the displacement, if it was measured
            and the displacement is finite and not zero.

    Raises:
        ValueError: If the lists differ in length, or a direction does not fit
            its parameter.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        direction: Sequence[Tensor | None],
        scale: float | Tensor = 1.0,
        *,
        masters: Sequence[Tensor] | None = None,
        measure: bool = False,
    ) -> None:
        self.realised: Realised | None = None
        self._groups: list[tuple[list[Tensor], list[Tensor]]] = []
        sums: list[Tensor] = []
        _moved_now.append(self)
        try:
            with torch.no_grad():
                lists = _matched(params, direction, masters)
                for moving, buffers, bases in grouped(*lists, cut=True):
                    steps = widened(buffers) if is_half(moving[0]) else buffers
                    # moved = w + scale * d, in float32 where w has half precision.
                    scaled_(steps, scale)
                    moved = list(torch._foreach_add(widened(bases), steps))
                    if measure:
                        sums.append(_compared(moved, moving, steps))
                    torch._foreach_copy_(buffers, moving)
                    # From here on the buffers hold what is put back.
                    self._groups.append((moving, buffers))
                    torch._foreach_copy_(moving, moved)
                    del steps, moved  # before the next group's are made
            _forget_casts()
        except BaseException:
            self.restore()
            raise
        if sums:
            whole = torch.stack([part.to(sums[0].device) for part in sums]).sum(0)
            self.realised = _realised(*whole.tolist())

    def mirror(self) -> None:
        """Move from ``w + d`` to ``w - d``: the other side of the saved point.

        Computed as ``2 w - (w + d)``, so it needs no second buffer and mirrors
        the displacement as it was rounded: both sides are equally far from w.
        """
        with torch.no_grad():
            for moved, saved in self._groups:
                if is_half(moved[0]):
                    other = torch._foreach_mul(widened(saved), 2)
                    torch._foreach_sub_(other, widened(moved))
                    torch._foreach_copy_(moved, other)
                    del other
                else:
                    # 2 w - (w + d) = w - d, in place.
                    torch._foreach_neg_(moved)
                    torch._foreach_add_(moved, saved, alpha=2)
        _forget_casts()

    def restore(self) -> None:
        """Copy the saved values back. A second call does nothing."""
        with torch.no_grad():
            for moved, saved in self._groups:
                torch._foreach_copy_(moved, saved)
        self._groups = []
        if self in _moved_now:
            _moved_now.remove(self)
        _forget_casts()

    def saved(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each parameter that is moved, and the values that it had before."""
        for moved, saved in self._groups:
            yield from zip(moved, saved, strict=True)


def values_before() -> dict[int, Tensor]:
    """Return the values that moved parameters had before any move, by the parameter's ``id``.

    Returns:
        The buffers themselves, which are put back later: they are to be read only.
    """
    before: dict[int, Tensor] = {}
    for record in _moved_now:
        for param, value in record.saved():
            before.setdefault(id(param), value)
    return before


@contextmanager
def perturbed(
    params: Sequence[Tensor],
    direction: Sequence[Tensor | None],
    scale: float | Tensor = 1.0,
    *,
    masters: Sequence[Tensor] | None = None,
    measure: bool = False,
) -> Iterator[Borrowed]:
    """Run a block at ``params + scale * direction``.

    Both the forward and the backward pass of a graph belong inside the block:
    PyTorch saves a parameter itself for the backward pass, not its value.

    Args:
        params: Parameters to move, each once; changed in place.
        direction: One tensor per parameter, or ``None`` to leave one alone;
            its buffers are consumed.
        scale: Factor on the direction.
        masters: Float32 copies of half-precision parameters.
        measure: Whether to measure what rounding left of the displacement.

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
    borrowed = Borrowed(params, direction, scale, masters=masters, measure=measure)
    try:
        yield borrowed
    finally:
        borrowed.restore()


def _matched(
    params: Sequence[Tensor],
    direction: Sequence[Tensor | None],
    masters: Sequence[Tensor] | None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """List what moves: parameters, steps, and what the steps are added to."""
    bases = params if masters is None else masters
    if len(params) != len(direction) or len(params) != len(bases):
        raise ValueError(
            f"{len(params)} parameters but {len(direction)} direction tensors"
            + ("" if masters is None else f" and {len(bases)} master copies")
        )
    matched: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for position, (param, step) in enumerate(zip(params, direction, strict=True)):
        if step is None:
            continue
        fits = step.dtype == param.dtype or (step.dtype == torch.float32 and is_half(param))
        if (step.shape, step.device) != (param.shape, param.device) or not fits:
            raise ValueError(
                f"direction {position} is {tuple(step.shape)} {step.dtype} on {step.device}, "
                f"its parameter {tuple(param.shape)} {param.dtype} on {param.device}"
            )
        for kept, tensor in zip(matched, (param, step, bases[position]), strict=True):
            kept.append(tensor)
    return matched


def _compared(moved: list[Tensor], saved: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Sum the squares of what was moved and was wanted, and their product in between."""
    # One tensor at a time: this is looked at once in many updates.
    pairs = [
        (m.to(s.dtype).to(m.dtype) - s, w) for m, s, w in zip(moved, saved, wanted, strict=True)
    ]
    squares = [torch.stack(norms(list(side))).square().sum() for side in zip(*pairs, strict=True)]
    product = torch.stack([d.mul_(w).sum(dtype=torch.float64) for d, w in pairs]).sum()
    return torch.stack([squares[0], product, squares[1]])


def _realised(moved: float, product: float, wanted: float) -> Realised | None:
    if not math.isfinite(moved) or not math.isfinite(wanted) or wanted == 0:
        return None
    # The arguments are ||m||^2, m.d and ||d||^2 of the rounded move m and the step d.
    lengths = math.sqrt(moved * wanted)
    return Realised(math.sqrt(moved / wanted), product / lengths if lengths else 0.0)


def _forget_casts() -> None:
    """Drop autocast's half-precision copies of weights, which are those before a move."""
    torch.clear_autocast_cache()
