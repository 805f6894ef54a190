"""What one model's measurement holds, before it is summed up."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import NamedTuple

from deltasam_fairseq.benchmarks.cost_model import PassSeconds


class Times(NamedTuple):
    """How long something took, by two clocks.

    Args:
        elapsed: Seconds on the wall; of a GPU, between two events on its stream.
        processor: Seconds that processors worked for this process, its threads
            added up. With one thread on the CPU this is what an idle machine
            would take; other work on the machine hardly shows in it.
    """

    elapsed: float
    processor: float


CLOCKS = Times._fields


@dataclass
class Measurement:
    """What was measured on one model.

    Args:
        model: Its name.
        flags: fairseq's flags, with ``METHOD`` in the place of the method's own.
        parameters: Trainable parameters, tied ones once.
        parameter_bytes: Size of one copy of them.
        batch: Sentences, source tokens and target tokens of the update, padding
            not counted.
        updates: By method, one entry per round; ``None`` in rounds that the
            method sat out.
        passes: Per round, what each pass of :class:`~.cost_model.PassSeconds` took
            apart, in its order.
        fallbacks: By method, how many of its measured updates took a fallback.
            One adds a forward and a backward pass.
        skipped: By method, how many of its measured updates were given up, because a
            gradient overflowed or memory ran out; they took less than an update takes.
        working: By method, seconds of one update in which the device worked; empty if
            it was not asked for.
        peak: By method, bytes at the worst moment of an update; parameters and
            the optimizer's state do not count.
        forward_bytes: Bytes at the worst moment of one forward pass, which is
            what it keeps for the backward pass and a little more.
        method_flags: By method, what stands in ``METHOD``'s place.
        width: Width of the model's layers.
        calls: By method, ``forward`` and ``backward`` passes of an update, in passes over
            its batch.
    """

    model: str
    flags: str
    parameters: int
    parameter_bytes: int
    batch: dict[str, int]
    updates: dict[str, list[Times | None]] = field(default_factory=dict)
    passes: list[tuple[Times, ...]] = field(default_factory=list)
    fallbacks: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    working: dict[str, float] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    forward_bytes: int = 0
    method_flags: dict[str, str] = field(default_factory=dict)
    width: int = 0
    calls: dict[str, dict[str, float]] = field(default_factory=dict)

    def seconds(self, method: str, clock: str) -> list[float]:
        """List a method's times.

        Args:
            method: Name of the method.
            clock: One of :data:`CLOCKS`.

        Returns:
            Seconds per update, of the rounds that it took part in.
        """
        return [getattr(times, clock) for times in self.updates[method] if times is not None]

    @property
    def tokens(self) -> int:
        """Tokens of an update, sources and targets, padding not counted."""
        return self.batch["source_tokens"] + self.batch["target_tokens"]

    def waiting(self, clock: str) -> dict[str, float]:
        """Return the share of an update in which the device waits for Python.

        Args:
            clock: One of :data:`CLOCKS`.

        Returns:
            By method, of the median of its updates; 0 to 1.
        """
        medians = {m: statistics.median(self.seconds(m, clock)) for m in self.working}
        return {m: max(0.0, 1 - self.working[m] / medians[m]) for m in self.working}

    def ratios(self, method: str, base: str, clock: str) -> list[float]:
        """Divide two methods' times round by round.

        Args:
            method: Name of the method.
            base: Name of the method that it is compared with.
            clock: One of :data:`CLOCKS`.

        Returns:
            The ratios of the rounds that both took part in, no unit.
        """
        pairs = zip(self.updates[method], self.updates[base], strict=True)
        return [
            getattr(above, clock) / getattr(below, clock)
            for above, below in pairs
            if above is not None and below is not None
        ]

    def pass_seconds(self, clock: str) -> list[PassSeconds]:
        """List what the passes took, per round.

        Args:
            clock: One of :data:`CLOCKS`.

        Returns:
            One entry per round.
        """
        return [PassSeconds(*(getattr(t, clock) for t in times)) for times in self.passes]

    def typical_passes(self, clock: str) -> PassSeconds:
        """Return the medians over rounds of what the passes took.

        Args:
            clock: One of :data:`CLOCKS`.

        Returns:
            Seconds.
        """
        columns = zip(*self.pass_seconds(clock), strict=True)
        return PassSeconds(*(statistics.median(column) for column in columns))

    def extra_copies(self, method: str, base: str = "none") -> float:
        """Return peak memory beyond another method's, in copies of the parameters.

        Args:
            method: Name of the method.
            base: Name of the method that it is compared with.

        Returns:
            Copies; negative if the method needs less.
        """
        return (self.peak[method] - self.peak[base]) / self.parameter_bytes
