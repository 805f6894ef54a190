"""What a terminal shows of a run: fairseq's lines of numbers, shortened, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from deltasam_fairseq.data.process import Say
from deltasam_fairseq.errors import read_whole
from deltasam_fairseq.recipes.command import flag_values
from deltasam_fairseq.recipes.train_log import UPDATES, LogLine, parse_line

_SHOWN = ("loss", "sam_loss", "sharpness", "sam_ess", "sam_fallback", "ups")
#: Flags that end a run, and the meters that reach them; ``update`` counts epochs, with fractions.
_LIMITS = {"max-update": "num_updates", "max-epoch": "update"}


class Progress:
    """Shortens what fairseq-train says, line by line.

    The time left is what the remaining updates or epochs take, whichever end first, at the mean
    speed since the first line of numbers, validations included. A run that ``--patience`` stops
    takes less.
    """

    def __init__(
        self,
        command: Sequence[str],
        say: Say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        flags = flag_values(command)
        given = [flag for flag in _LIMITS if flags.get(flag)]
        limits = {_LIMITS[flag]: read_whole(f"--{flag}", flags[flag]) for flag in given}
        # fairseq takes 0 for no limit.
        self._limits = {meter: limit for meter, limit in limits.items() if limit > 0}
        self._say, self._clock = say, clock
        self._first: tuple[float, Mapping[str, float]] | None = None

    def __call__(self, line: str) -> None:
        """Say what there is to say of a line that fairseq wrote."""
        entry = parse_line(line)
        if entry:
            self._say(self._summary(entry))

    def _summary(self, entry: LogLine) -> str:
        values = entry.values
        if entry.tag == UPDATES:
            limit = self._limits.get("num_updates")
            total = "" if limit is None else f"/{limit:.0f}"
            shown = [f"{name} {values[name]:g}" for name in _SHOWN if name in values]
            left = self._left(values)
            if left is not None:
                shown.append(f"{duration(left)} left")
            return f"  update {values['num_updates']:.0f}{total}: {', '.join(shown)}"
        shown = [
            f"{name.removeprefix(entry.tag + '_')} {values[name]:g}"
            for name in (f"{entry.tag}_loss", f"{entry.tag}_ppl")
            if name in values
        ]
        return f"{entry.tag}: {', '.join(shown)}"

    def _left(self, values: Mapping[str, float]) -> float | None:
        """Return seconds to the first limit; none before there is a speed."""
        now = self._clock()
        if self._first is None:
            self._first = now, values
            return None
        began, first = self._first
        return min(
            (
                max(limit - values[meter], 0) * (now - began) / (values[meter] - first[meter])
                for meter, limit in self._limits.items()
                if values.get(meter, 0) > first.get(meter, float("inf"))
            ),
            default=None,
        )


def duration(seconds: float) -> str:
    """Write seconds as people say it: minutes and seconds, from an hour on hours and minutes.

    Returns:
        The text.

    Example:
        >>> duration(70), duration(7500)
        ('1 min 10 s', '2 h 5 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
