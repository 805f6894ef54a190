"""Lines of files that belong together, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite

from deltasam_fairseq.errors import UserError


def check_lengths(first: Sequence[str], second: Sequence[str], name: str, other: str) -> None:
    """Refuse files of different lengths, and empty ones.

    Args:
        first: Lines of one file.
        second: Lines of the other.
        name: What the first holds, in the plural.
        other: What the second holds.

    Raises:
        UserError: If the lengths differ or are zero.
    """
    if len(first) != len(second):
        raise UserError(
            f"{len(first)} {name} but {len(second)} {other}; "
            "line n of one must belong to line n of the other"
        )
    if not first:
        raise UserError(f"there is nothing to score: no {name} and no {other}")


def check_references(references: Iterable[Sequence[str]]) -> None:
    """Refuse a line all references of which are blank.

    Args:
        references: Those of each line.

    Raises:
        UserError: If there is such a line; the message has its number.
    """
    for row, texts in enumerate(references, start=1):
        if not any(text.strip() for text in texts):
            raise UserError(f"line {row}: the reference is empty; remove it and its hypothesis")


def read_numbers(lines: Sequence[str], what: str) -> list[float]:
    """Read one finite number per line.

    Args:
        lines: As in the file.
        what: What a line holds, in the singular; for the message.

    Returns:
        The numbers.

    Raises:
        UserError: If a line holds something else; the message has the line's number.
    """
    numbers = []
    for row, line in enumerate(lines, start=1):
        try:
            number = float(line)
        except ValueError:
            number = float("nan")
        if not isfinite(number):
            raise UserError(f"line {row}: the {what} is {line!r}, not a finite number")
        numbers.append(number)
    return numbers
