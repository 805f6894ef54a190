"""Tables of text: how a cell is written, and a table as text, Markdown or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from deltasam_fairseq.markdown import markdown_lines

NOT_RUN = "not run"
NONE = "-"
_TEXT_COLUMNS = 1


@dataclass(frozen=True)
class Table:
    """Rows of text under a header.

    Args:
        header: Names of the columns.
        rows: Cells, as many as columns.
        note: What the numbers are, in one line.
    """

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str


def mean_and_std(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean over seeds, the standard deviation, and the number of seeds.

    Example:
        >>> mean_and_std([70.0, 71.0, 75.0])
        '72.00 ± 2.65 (n=3)'
    """
    if not values:
        return NOT_RUN
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{deviation} (n={len(values)})"


def difference(value: float | None, published: str) -> str:
    """Write a value minus a published number, which may have an asterisk behind it."""
    number = published.rstrip("*")
    return NONE if value is None or number == NONE else f"{value - float(number):+.2f}"


def as_text(table: Table) -> str:
    """Write a table for a terminal, with aligned columns."""
    lines = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join(
            cell.ljust(width) if index < _TEXT_COLUMNS else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([aligned[0], "-" * len(aligned[0]), *aligned[1:], "", table.note])


def as_markdown(table: Table) -> str:
    """Write a table in Markdown, with the note below it."""
    rules = tuple("---" if index < _TEXT_COLUMNS else "--:" for index in range(len(table.header)))
    return "\n".join([*markdown_lines(table.header, rules, table.rows), "", table.note])


def as_csv(table: Table) -> str:
    """Write a table as comma-separated values; the note is a column of its own."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*table.header, "note"])
    writer.writerows([*row, table.note] for row in table.rows)
    return text.getvalue().rstrip("\n")


FORMATS: dict[str, Callable[[Table], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "csv": as_csv,
}
