"""Finding out which rows belong to which sentence, instead of guessing from shapes.

The loss of sentence i reaches only the rows of sentence i. So a second backward
pass, of ``sum_i k_i l_i`` with factors k_i that all differ, multiplies each row's
gradient by the factor of the sentence that owns it. That tells time-first from
batch-first when both sizes agree, finds the owners of packed rows, and
uncovers sentences that are not independent (batch normalisation, rows shared
by a batch), for which no sentence has a perturbation of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltasam_fairseq.core.precision import wide
from deltasam_fairseq.per_instance.layout import OfSentences, Packed, Strided

# Relative difference that rounding may make, and the share of the largest
# gradient below which a row is nothing but rounding: where everything is
# computed in float32 or wider, and where something is in half precision.
FINE, COARSE = (1e-3, 1e-6), (5e-2, 1e-3)


def factors(count: int, like: Tensor) -> Tensor:
    """Choose the factors of the second backward pass.

    Args:
        count: N.
        like: The losses.

    Returns:
        From 1 to 4 in equal steps, shape ``(N,)``.
    """
    return torch.linspace(1, 4, count, dtype=like.dtype, device=like.device)


class Probe:
    """What the two backward passes say about one output.

    Args:
        delta: Its gradient in the first, of the sum of losses.
        again: Its gradient in the second.
        factors: ``k_i``, shape ``(N,)``.
        rows: How many of its first dimensions are rows.
        largest: The largest norm of any gradient in the second; a number or a scalar.
        coarse: Whether something is computed in half precision.

    What a probe finds is on the gradients' device. :func:`answer` reads it for all probes at
    once, because reading anything from a GPU waits for it; the attributes are right from
    then on.

    Attributes:
        decisive: Whether there is a gradient to tell anything from.
        finite: Whether all of the gradient is.
        empty: Whether the gradient of the sum is zero everywhere.
    """

    def __init__(
        self,
        delta: Tensor,
        again: Tensor,
        factors: Tensor,
        *,
        rows: int,
        largest: float | Tensor,
        coarse: bool,
    ) -> None:
        tolerance, floor = COARSE if coarse else FINE
        self.delta, self.again = wide(delta), wide(again)
        self.factors = factors.to(self.delta.dtype)
        self.rows = rows
        self.tolerance = tolerance
        self.floor = floor * largest
        count = len(self.factors)
        self._strided = [
            Strided(dim, count, major)
            for dim, size in enumerate(self.delta.shape[:rows])
            for major in (True, False)
            if size % count == 0 and (major or size > count)
        ]
        self._agreeing: list[OfSentences] | None = None
        self.decisive = self.finite = self.empty = False

    def questions(self) -> list[Tensor]:
        """Return what has to be known, as boolean scalars that were not read."""
        return [
            self.again.norm() > self.floor,
            torch.isfinite(self.again).all(),
            ~self.delta.any(),
            *map(self._agrees, self._strided),
        ]

    def learn(self, answers: Sequence[bool]) -> None:
        """Take the values of :meth:`questions`."""
        self.decisive, self.finite, self.empty, *agrees = answers
        self._agreeing = [x for x, yes in zip(self._strided, agrees, strict=True) if yes]

    def layouts(self) -> list[OfSentences]:
        """List the layouts that agree with the gradients.

        Returns:
            Strided ones, or else a packed one; several if the gradients do not
            tell them apart, none if rows have no single owner.
        """
        if self._agreeing is None:
            answer([self])
        if self._agreeing or not self.rows or not self.finite:
            return self._agreeing or []
        packed = self._packed()
        return [packed] if packed is not None and bool(self._agrees(packed)) else []

    def _agrees(self, layout: OfSentences) -> Tensor:
        delta, again = (layout.split(t).flatten(1) for t in (self.delta, self.again))
        residual = (again - self.factors[:, None] * delta).norm(dim=1)
        size = again.norm(dim=1)
        agrees = residual <= self.tolerance * size + self.floor
        # A sentence whose gradient is not finite says nothing; the others do.
        found: Tensor = (agrees | ~torch.isfinite(size)).all()
        return found

    def _packed(self) -> Packed | None:
        delta, again = self.delta.flatten(1), self.again.flatten(1)
        squares = delta.square().sum(1)
        known = again.norm(dim=1) > self.floor
        ratio = (delta * again).sum(1) / squares.clamp_min(torch.finfo(squares.dtype).tiny)
        distance = (ratio[:, None] - self.factors[None, :]).abs()
        owners = distance.argmin(1)
        gap = 3 / max(1, len(self.factors) - 1)
        if not known.any() or (distance.amin(1)[known] > gap / 4).any():
            return None
        # A row without gradient lies between two of the sentence that owns it.
        place = torch.arange(len(known), device=known.device)
        before = torch.where(known, place, -1).cummax(0).values
        after = torch.where(known, place, len(known)).flip(0).cummin(0).values.flip(0)
        if (before < 0).any() or (after == len(known)).any():
            return None
        if (owners[before] != owners[after]).any():
            return None
        return Packed(owners[before], len(self.factors))


def answer(probes: Sequence[Probe], others: Sequence[Tensor] = ()) -> list[bool]:
    """Read everything that probes, and whoever else, have to know, in one go.

    Args:
        probes: They learn.
        others: Boolean scalars.

    Returns:
        The values of the others.
    """
    asked = [probe.questions() for probe in probes]
    flat = [*others, *(question for own in asked for question in own)]
    if not flat:
        return []
    values = torch.stack([question.to(flat[0].device) for question in flat]).tolist()
    read = iter(values[len(others) :])
    for probe, own in zip(probes, asked, strict=True):
        probe.learn([next(read) for _ in own])
    return values[: len(others)]
