"""Runs side by side with the baselines that need no training."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.markdown import markdown_lines
from deltasam_fairseq.recipes.progress import duration
from deltasam_fairseq.recipes.run_folder import RECORD, RunFolder
from deltasam_fairseq.recipes.scoring import MODEL, read_scores

NOT_RUN = "not run"
NONE = "-"

#: What papers call ROUGE-L takes sentence by sentence; where each text is one sentence
#: (``split:newline``) it is rouge-score's ``rougeL``.
VARIANTS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeLsum": "ROUGE-L"}
_HEADER = ("system", "seed", *VARIANTS.values(), "training")
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


def build_table(runs: Sequence[Path], split: str) -> Table:
    """Collect the F-measures of runs and of the baselines.

    Args:
        runs: Folders of runs. One that is missing or not evaluated gets cells that say so.
        split: Which scores to show.

    Returns:
        One row per run, in the order given, then one per baseline.

    Raises:
        UserError: If runs were scored on different data or in different ways, if one
            predicts labels, or if none of the folders exists.
    """
    if not any(run.is_dir() for run in runs):
        raise UserError(f"no such run: {', '.join(map(str, runs))}")
    require_texts(runs)
    found = {run: scores for run in runs if (scores := read_scores(run, split))}
    require_comparable(found)
    rows = [_run_row(run, found.get(run)) for run in runs]
    if not found:
        return Table(_HEADER, rows, f"no {split} scores yet; make them with: deltasam evaluate RUN")
    scores = next(iter(found.values()))
    rows += [
        (name, NONE, *_cells(report), "none")
        for name, report in scores["systems"].items()
        if name != MODEL
    ]
    return Table(_HEADER, rows, f"F-measure, {scores['n']} {split} pairs, {scores['signature']}")


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


def require_comparable(found: dict[Path, dict[str, Any]]) -> None:
    """Make sure that scores were made from the same data in the same way.

    Args:
        found: Scores by run.

    Raises:
        UserError: If they were not.
    """
    for what in ("data_sha256", "signature"):
        values = {run: scores[what] for run, scores in found.items()}
        if len(set(values.values())) > 1:
            listing = "; ".join(f"{run}: {value[:60]}" for run, value in values.items())
            raise UserError(
                f"these runs cannot share a table, their {what} differs ({listing}); "
                "make one table each"
            )


def require_texts(runs: Sequence[Path]) -> None:
    """Refuse runs that generate no texts.

    Args:
        runs: Their folders.

    Raises:
        UserError: If one of them predicts labels; the message says where those are compared.
    """
    if classifiers := [run for run in runs if _predicts_labels(run)]:
        raise UserError(
            f"this table compares generated texts, and {', '.join(map(str, classifiers))} "
            "generated none: deltasam evaluate RUN prints the scores of a run that classifies "
            "sentences, deltasam sweep and deltasam table 1 compare such runs"
        )


def _predicts_labels(run: Path) -> bool:
    """Tell by a run's results, or before there are any by what it began with."""
    if any(run.glob("generate-*")):
        return False
    if any(run.glob("predict-*")):
        return True
    return (run / RECORD).is_file() and bool(RunFolder(run).record().get("encoder"))


def _run_row(run: Path, scores: dict[str, Any] | None) -> tuple[str, ...]:
    report = scores["systems"][MODEL] if scores else None
    if not (run / RECORD).is_file():
        return (run.name, NONE, *_cells(report), NOT_RUN)
    record = RunFolder(run).record()
    return (record["method"], str(record["seed"]), *_cells(report), _training(record))


def _cells(report: dict[str, Any] | None) -> tuple[str, ...]:
    if report is None:
        return (NOT_RUN,) * len(VARIANTS)
    return tuple(f"{report[name]['fmeasure']:.2f}" for name in VARIANTS)


def _training(record: dict[str, Any]) -> str:
    trained = duration(sum(start.get("seconds", 0) for start in record["starts"]))
    return trained if record["finished"] else f"unfinished, {trained}"
