"""Reading what fairseq-train says with ``--log-format json``.

fairseq's own ``--log-file`` is not used: it adds one handler per epoch, so that
every line of epoch n is written n times. The log is its whole output instead,
and a line of numbers in it looks like this::

    2024-05-01 12:00:00 | INFO | train_inner | {"epoch": 1, "loss": "9.1", "num_updates": "50", …}
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltasam_fairseq.errors import UserError

#: Tag of the lines that average the last few updates.
UPDATES = "train_inner"

_NUMBERS = re.compile(r"\| (\w+) \| (\{.*\})\s*$")


@dataclass(frozen=True)
class LogLine:
    """The numbers of one line.

    Args:
        tag: ``train_inner`` for some updates, ``train`` for an epoch, or the name of a subset.
        values: Meters by name.
    """

    tag: str
    values: dict[str, float]


def parse_line(line: str) -> LogLine | None:
    """Read the numbers of one line of the log, if it holds some."""
    found = _NUMBERS.search(line)
    if not found:
        return None
    try:
        entries = json.loads(found.group(2))
    except json.JSONDecodeError:
        return None
    values: dict[str, float] = {}
    for name, value in entries.items():
        try:
            values[name] = float(value)
        except (TypeError, ValueError):
            continue
    return LogLine(found.group(1), values)


def read_curve(path: Path, tag: str = UPDATES) -> list[dict[str, float]]:
    """Read how a run's numbers went, from the lines of one tag.

    After a run was killed and continued, some updates are in the log twice;
    the later ones count.

    Returns:
        The meters of each line, without the tag in their names, by growing
        ``num_updates``.

    Raises:
        UserError: If there is no log, or no line about updates in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; train first, with deltasam train") from None
    curve: list[dict[str, float]] = []
    for entry in filter(None, map(parse_line, lines)):
        meters = {name.removeprefix(f"{tag}_"): value for name, value in entry.values.items()}
        if entry.tag == tag and "num_updates" in meters:
            while curve and curve[-1]["num_updates"] >= meters["num_updates"]:
                curve.pop()
            curve.append(meters)
    if not curve and tag == UPDATES:
        raise UserError(
            f"{path} has no line of numbers about updates: training ended before the first "
            "--log-interval of them, or ran without --log-format json"
        )
    return curve


def column(curve: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Return the numbers of updates and the values of one meter, where it was logged."""
    points = [values for values in curve if name in values]
    return [p["num_updates"] for p in points], [p[name] for p in points]
