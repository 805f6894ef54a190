"""Runs that generate texts, with their ROUGE scores: beside baselines, or beside Table 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from deltasam_fairseq.analysis.table import NONE, NOT_RUN, Table
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.methods import in_usual_order
from deltasam_fairseq.recipes.progress import duration
from deltasam_fairseq.recipes.published import ROUGE, TABLE_3, TABLE_3_NOTE, TABLE_3_PAIRS
from deltasam_fairseq.recipes.run_folder import RECORD, RunFolder
from deltasam_fairseq.recipes.scoring import MODEL, read_scores

#: Recipes whose published table is known.
PUBLISHED = ("cnndm",)
#: Methods that have a row of ours whether they were run or not: those of the table, and what they
#: are compared with.
_ROWS = ("none", "sam", "delta_sam", "per_instance", "rdrop", "r3f")
#: What papers call ROUGE-L takes sentence by sentence; where each text is one sentence
#: (``split:newline``) it is rouge-score's ``rougeL``.
_ROUGE_COLUMNS = ("ROUGE-1", "ROUGE-2", "ROUGE-L")


@dataclass(frozen=True)
class Run:
    """A run as its folder holds it.

    Args:
        path: The folder.
        record: ``run.json``; none if there is none.
        scores: Of the split that was asked for; none before ``deltasam evaluate``.
    """

    path: Path
    record: Mapping[str, Any] | None
    scores: Mapping[str, Any] | None

    @property
    def seconds(self) -> float:
        """Time of training, as far as it is known."""
        starts = self.record["starts"] if self.record else ()
        return float(sum(start.get("seconds", 0) for start in starts))

    def fmeasures(self, system: str = MODEL) -> list[float] | None:
        """Return ROUGE-1, ROUGE-2 and ROUGE-L of the model or a baseline, in percent."""
        if self.scores is None:
            return None
        report = self.scores["systems"][system]
        return [report[name]["fmeasure"] for name in ROUGE]


def run_table(folders: Sequence[Path], split: str) -> Table:
    """Return runs beside the baselines of their data, which need no training.

    A run that is missing or was not evaluated gets cells that say so.

    Raises:
        UserError: If runs were scored on different data or in different ways, if one
            predicts labels, or if none of the folders exists.
    """
    if not any(folder.is_dir() for folder in folders):
        raise UserError(f"no such run: {', '.join(map(str, folders))}")
    runs = _read_runs(folders, split)
    header = ("system", "seed", *_ROUGE_COLUMNS, "training")
    rows = [_run_row(run) for run in runs]
    scored = next((run for run in runs if run.scores), None)
    if scored is None or scored.scores is None:
        return Table(header, rows, f"no {split} scores yet; make them with: deltasam evaluate RUN")
    rows += [
        (name, NONE, *_cells(scored.fmeasures(name)), "none")
        for name in scored.scores["systems"]
        if name != MODEL
    ]
    n, signature = scored.scores["n"], scored.scores["signature"]
    return Table(header, rows, f"F-measure, {n} {split} pairs, {signature}")


def table_3(folders: Sequence[Path], split: str) -> Table:
    """Return Table 3, the published scores on CNN/DailyMail, with a row for each method of ours.

    A row has the mean over the runs of its method, which are its seeds.

    Raises:
        UserError: If a folder is no run or was not evaluated, or if two runs do not compare.
    """
    for folder in folders:
        RunFolder(folder).record()  # says what is wrong with a folder that is no run
    runs = _read_runs(folders, split)
    for run in runs:
        if run.scores is None:
            raise UserError(
                f"{run.path} has no {split} scores; make them with: deltasam evaluate {run.path} "
                f"--split {split}"
            )
    header = ("system", *_ROUGE_COLUMNS, "scored with", "seeds", "hardware", "hours")
    rows: list[tuple[str, ...]] = [
        (name, *row.cells, row.scorer, row.seeds, row.hardware, row.hours)
        for name, row in TABLE_3.items()
    ]
    ran = {run.record["method"] for run in runs if run.record}
    for method in in_usual_order({*_ROWS, *ran}):
        own = [run for run in runs if run.record and run.record["method"] == method]
        cells = _method_cells(own) if own else (NOT_RUN,) * (len(header) - 1)
        rows.append((f"ours: {method}", *cells))
    return Table(header, rows, _note(runs))


def _read_runs(folders: Sequence[Path], split: str) -> list[Run]:
    """Read runs; refuse those that generate no texts, or whose scores do not compare."""
    runs = [
        Run(
            folder,
            RunFolder(folder).record() if (folder / RECORD).is_file() else None,
            read_scores(folder, split) or None,
        )
        for folder in folders
    ]
    if classifiers := [str(run.path) for run in runs if _predicts_labels(run)]:
        raise UserError(
            f"this table compares generated texts, and {', '.join(classifiers)} "
            "generated none: deltasam evaluate RUN prints the scores of a run that classifies "
            "sentences, deltasam sweep and deltasam table 1 compare such runs"
        )
    for what in ("data_sha256", "signature"):
        values = {run.path: run.scores[what] for run in runs if run.scores}
        if len(set(values.values())) > 1:
            listing = "; ".join(f"{path}: {value[:60]}" for path, value in values.items())
            raise UserError(
                f"these runs cannot share a table, their {what} differs ({listing}); "
                "make one table each"
            )
    return runs


def _predicts_labels(run: Run) -> bool:
    """Tell by a run's results, or before there are any by what it began with."""
    if any(run.path.glob("generate-*")):
        return False
    return any(run.path.glob("predict-*")) or bool(run.record and run.record.get("encoder"))


def _run_row(run: Run) -> tuple[str, ...]:
    cells = _cells(run.fmeasures())
    if run.record is None:
        return (run.path.name, NONE, *cells, NOT_RUN)
    trained = duration(run.seconds)
    training = trained if run.record["finished"] else f"unfinished, {trained}"
    return (run.record["method"], str(run.record["seed"]), *cells, training)


def _cells(values: Sequence[float] | None) -> tuple[str, ...]:
    return (NOT_RUN,) * len(ROUGE) if values is None else tuple(f"{value:.2f}" for value in values)


def _method_cells(runs: Sequence[Run]) -> tuple[str, ...]:
    columns = zip(*(run.fmeasures() or () for run in runs), strict=True)
    records = [run.record for run in runs if run.record]
    seeds = ", ".join(sorted((str(record["seed"]) for record in records), key=int))
    return (
        *_cells([fmean(column) for column in columns]),
        "see below",
        seeds if len(runs) == 1 else f"{seeds} (mean of {len(runs)})",
        "; ".join(sorted({_hardware(record) for record in records})),
        f"{fmean(run.seconds for run in runs) / 3600:.2f}",
    )


def _hardware(record: Mapping[str, Any]) -> str:
    hardware = record.get("hardware", {})
    if gpus := hardware.get("gpus"):
        return f"{record.get('gpus') or 1} {gpus[0]}"
    return f"{hardware.get('cores', NONE)} cores, {hardware.get('cpu', NONE)}"


def _note(runs: Sequence[Run]) -> str:
    scored = next((run.scores for run in runs if run.scores), None)
    if scored is None:
        return TABLE_3_NOTE
    pairs = scored["n"]
    note = f"{TABLE_3_NOTE} Ours: F-measure, {pairs} pairs, {scored['signature']}"
    recipes = sorted({run.record["recipe"] for run in runs if run.record})
    if pairs != TABLE_3_PAIRS or recipes != list(PUBLISHED):
        note += (
            f". NOT COMPARABLE with the published rows: recipe {', '.join(recipes)} and {pairs:,} "
            f"pairs, where they have BART-large and {TABLE_3_PAIRS:,}"
        )
    return note
