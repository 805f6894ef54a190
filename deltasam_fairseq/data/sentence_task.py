"""What a table of labelled sentences looks like, and reading it row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import read_utf8

_SHOWN = 5


@dataclass(frozen=True)
class Layout:
    """Columns of one file, tab-separated, without quoting.

    Args:
        header: Whether the first line names the columns.
        texts: The columns of one or two sentences: names, or numbers from 0 without a header.
        label: The column of the label, or none for a file without.
        columns: Number of columns without a header; none with one.
    """

    header: bool
    texts: tuple[str | int, ...]
    label: str | int | None = None
    columns: int | None = None

    def __post_init__(self) -> None:
        """Refuse a layout with neither a header nor a number of columns."""
        if not self.header and self.columns is None:
            raise ValueError("a layout without a header needs its number of columns")


@dataclass(frozen=True)
class SplitFile:
    """One split of a task.

    Args:
        name: As fairseq numbers them: ``train``, ``valid``, ``valid1``, ``test``, ``test1``.
        file: Its file in the task's folder.
        layout: Its columns.
        counts: Numbers of rows that it is known to have; empty if none is known.
        submission: Name of the file to hand predictions in with; empty if there is none.
    """

    name: str
    file: str
    layout: Layout
    counts: tuple[int, ...] = ()
    submission: str = ""


@dataclass(frozen=True)
class SentenceTask:
    """A task that labels one or two sentences.

    Args:
        name: As its authors spell it.
        folder: Name of its folder, beside those of other tasks.
        splits: Its files; ``train`` and ``valid`` among them.
        classes: Labels as in the files, in the order of their ids; empty for a regression.
        metrics: Names of metrics; the first is the one that counts.
        label_scale: What scores are divided by for training, so that they lie in 0 to 1.
    """

    name: str
    folder: str
    splits: tuple[SplitFile, ...]
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    label_scale: float = 1.0

    @property
    def is_regression(self) -> bool:
        """Whether labels are numbers."""
        return not self.classes

    def split(self, name: str) -> SplitFile:
        """Look a split up by its name."""
        for split in self.splits:
            if split.name == name:
                return split
        names = ", ".join(split.name for split in self.splits)
        raise UserError(f"{self.name} has no split {name!r}; it has {names}")


@dataclass(frozen=True)
class Rows:
    """The rows of one file: a list per column of texts, and what was left out by its line."""

    texts: tuple[list[str], ...]
    labels: list[str] | None
    malformed: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.texts[0])


def read_rows(path: Path, task: SentenceTask, split: SplitFile, *, skip: bool = False) -> Rows:
    r"""Read one split.

    Only ``\n`` and ``\r\n`` end a line, quotation marks are text, and white space inside
    a sentence collapses to one space. Malformed rows are an error that names their lines, or are
    left out with ``skip``; not those of a file without labels, whose predictions are counted.

    Returns:
        The rows.

    Raises:
        UserError: If the file has malformed rows, or none.
    """
    lines = _lines(path)
    columns, label, width = _positions(path, split.layout, lines[0])
    texts: tuple[list[str], ...] = tuple([] for _ in columns)
    labels: list[str] = []
    malformed: dict[int, str] = {}
    first = 1 if split.layout.header else 0
    for number, line in enumerate(lines[first:], start=first + 1):
        cells = line.split("\t")
        complaint = _complaint(cells, width, label, task)
        if complaint:
            malformed[number] = complaint
            continue
        for side, column in zip(texts, columns, strict=True):
            side.append(" ".join(cells[column].split()))
        if label is not None:
            labels.append(cells[label].strip())
    if malformed and (not skip or label is None):
        raise UserError(f"{path}: {_listing(malformed)}{_advice(label)}")
    if not texts[0]:
        raise UserError(f"{path} has no rows")
    return Rows(texts, None if label is None else labels, malformed)


def describe_malformed(rows: Rows) -> str:
    """Say what was left out of a split, in one line; nothing if nothing was."""
    return _listing(rows.malformed) if rows.malformed else ""


def _lines(path: Path) -> list[str]:
    text = read_utf8(path)
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _positions(path: Path, layout: Layout, first: str) -> tuple[list[int], int | None, int]:
    if not layout.header:
        texts = [int(column) for column in layout.texts]
        return texts, None if layout.label is None else int(layout.label), layout.columns or 0
    names = [name.strip() for name in first.split("\t")]
    wanted = [str(name) for name in (*layout.texts, layout.label) if name is not None]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(map(repr, missing))}; the first line names "
            f"{', '.join(names)[:200]}"
        )
    found = [names.index(name) for name in wanted]
    label = None if layout.label is None else found.pop()
    return found, label, len(names)


def _complaint(cells: list[str], width: int, label: int | None, task: SentenceTask) -> str:
    if len(cells) != width:
        return f"{len(cells)} columns, not {width}"
    if label is None:
        return ""
    value = cells[label].strip()
    if not task.is_regression:
        return "" if value in task.classes else f"label {value!r}, not {' or '.join(task.classes)}"
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    inside = isfinite(number) and 0 <= number <= task.label_scale
    return "" if inside else f"label {value!r}, not a number from 0 to {task.label_scale:g}"


def _listing(malformed: Mapping[int, str]) -> str:
    shown = [f"line {number}: {text}" for number, text in list(malformed.items())[:_SHOWN]]
    more = [f"and {len(malformed) - _SHOWN} more"] if len(malformed) > _SHOWN else []
    return f"{len(malformed)} malformed row(s): {'; '.join([*shown, *more])}"


def _advice(label: int | None) -> str:
    if label is None:
        return ". A prediction is due for every row: get the file anew"
    return ". Get the file anew, or pass --skip-malformed to leave these rows out"
