"""Where a program calls its layers, and what was found out about each place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from deltasam_fairseq.per_instance.layout import OfSentences, Strided
from deltasam_fairseq.per_instance.rules.base import Call

# A place is probed until this many batches have agreed.
ENOUGH = 2
# Whatever is settled is probed again in every batch whose number this divides: sentences
# that come to depend on each other in the middle of training would go unnoticed.
AGAIN = 64

Site = tuple[Any, ...]
_NOTHING = torch.empty(0)


@dataclass
class Recorded:
    """One call of the first pass.

    Args:
        call: The call; its input is kept without its graph.
        site: The same for the same call in another batch.
        edge: Where autograd has the gradient of the output as the call left it,
            whatever is done to the output in place afterwards.
        input_shape: Of the input.
        shape: Of the output.
        stride: Of the output.
        dtype: Of the output.
        version: Of the input; another one later means that it was overwritten.
        picked: Whether rows were picked by what is in the batch before this call.
        spread: Numbers of the calls that take this one's place.
        void: Whether nothing depends on its being perturbed: the call that it spreads is, or
            no loss depends on it.
    """

    call: Call
    site: Site
    edge: Any
    input_shape: torch.Size
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    version: int
    picked: bool = False
    spread: list[int] = field(default_factory=list)
    void: bool = False

    @property
    def rows(self) -> int:
        """How many dimensions of the output may hold the sentences."""
        return self.call.rule.rows(self.call, len(self.shape))

    def forget(self) -> None:
        """Let go of the input and of the graph, once the gradients are known."""
        self.edge = None
        self.call.input = _NOTHING


@dataclass
class Sites:
    """What earlier batches said about each site.

    A plain dimension that holds the sentences is a property of the program; it
    is settled once some batches have agreed on it, and asked for again from time
    to time. Rows that were picked may be different in every batch, however they
    looked in some; they and all calls behind a pick are never settled.
    """

    _found: dict[Site, Strided] = field(default_factory=dict)
    _alone: dict[Site, bool] = field(default_factory=dict)
    _agreed: Counter[Site] = field(default_factory=Counter)
    _never: set[Site] = field(default_factory=set)
    _batches: int = 0

    def begin(self) -> None:
        """Count a batch."""
        self._batches += 1

    def settled(self, record: Recorded, count: int) -> OfSentences | None:
        """Return the layout of a call, if it is settled and the shape agrees.

        Args:
            record: The call.
            count: N.

        Returns:
            The layout, or ``None`` if the batch has to be probed.
        """
        if count == 1:
            return Strided(0, 1) if record.rows else None
        due = record.picked or self._batches % AGAIN == 0
        if due or record.site in self._never or self._agreed[record.site] < ENOUGH:
            return None
        layout = replace(self._found[record.site], count=count)
        if not layout.fits(record.shape):
            return None
        alone = record.shape[layout.dim] == count
        return layout if alone or not self._alone[record.site] else None

    def choose(
        self, record: Recorded, layouts: Sequence[OfSentences], *, decisive: bool
    ) -> OfSentences | None:
        """Settle on one of the layouts that a probe left, and remember it.

        Args:
            record: The call.
            layouts: At least one.
            decisive: Whether there was a gradient to probe.

        Returns:
            The layout; ``None`` if they are several and earlier batches do not
            tell which.
        """
        known = self._found.get(record.site)
        if len(layouts) > 1:
            alike = [x for x in layouts if _alike(x, known)]
            return alike[0] if alike else None
        layout = layouts[0]
        if not decisive:
            return layout
        if not isinstance(layout, Strided) or (known is not None and not _alike(layout, known)):
            self._never.add(record.site)
            return layout
        alone = record.shape[layout.dim] == layout.count
        self._found[record.site] = layout
        self._alone[record.site] = alone and self._alone.get(record.site, True)
        self._agreed[record.site] += 1
        return layout


def _alike(layout: OfSentences, known: Strided | None) -> bool:
    if known is None or not isinstance(layout, Strided):
        return False
    return (layout.dim, layout.major) == (known.dim, known.major)
