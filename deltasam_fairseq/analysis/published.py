"""Our runs beside the figures that papers print, each with what it was scored with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from deltasam_fairseq.analysis.table import (
    NONE,
    NOT_RUN,
    VARIANTS,
    Table,
    require_comparable,
    require_texts,
)
from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.scoring import MODEL, read_scores

_UNKNOWN = "not stated"


@dataclass(frozen=True)
class PublishedRow:
    """What a paper prints.

    Args:
        system: As the paper calls it, with the source.
        scores: ROUGE-1, ROUGE-2 and ROUGE-L, F-measure in percent, as printed.
        scorer: What it was scored with, as far as its authors say.
        seeds: Which or how many.
        hardware: What it was trained on.
        hours: How long that took.
    """

    system: str
    scores: tuple[str, str, str]
    scorer: str = _UNKNOWN
    seeds: str = _UNKNOWN
    hardware: str = _UNKNOWN
    hours: str = _UNKNOWN


@dataclass(frozen=True)
class PublishedTable:
    """A table of a paper, to put runs beside.

    Args:
        recipe: The recipe whose runs compare with it.
        pairs: Number of pairs that were scored.
        rows: The rows.
        note: What is odd about them.
    """

    recipe: str
    pairs: int
    rows: tuple[PublishedRow, ...]
    note: str


PUBLISHED = {
    "cnndm": PublishedTable(
        recipe="cnndm",
        pairs=11_490,
        rows=(
            PublishedRow(
                "BART (Lewis et al. 2020)",
                ("44.16", "21.28", "40.90"),
                scorer="ROUGE-1.5.5 -m by files2rouge, CoreNLP's PTB tokens",
                hardware="8 V100, 32 GB",
                hours="about 5",
            ),
            PublishedRow("PEGASUS (Zhang et al. 2020)", ("44.17", "21.47", "41.11")),
            PublishedRow("BART + R3F (Aghajanyan et al. 2020)", ("44.38", "21.53", "41.17")),
            PublishedRow(
                "BART + R-Drop (Liang et al. 2021)",
                ("44.51", "21.58", "41.24"),
                scorer="files2rouge, on raw text by its README",
                hardware="4 RTX 3090",
            ),
            PublishedRow("BART + δ-SAM (Zhou et al. 2022)", ("44.70", "21.54", "41.81")),
        ),
        note="Published rows as in Table 3 of Zhou et al. 2022, which prints 21.41 for PEGASUS's "
        "ROUGE-2; PEGASUS's own paper has 21.47.",
    )
}

_HEADER = ("system", *VARIANTS.values(), "scored with", "seeds", "hardware", "hours")


def build_published(name: str, runs: Sequence[Path], split: str) -> Table:
    """Put runs beside a table of a paper.

    Args:
        name: A key of ``PUBLISHED``.
        runs: Folders of runs; those of one method share a row, with the mean over seeds.
        split: Which scores to show.

    Returns:
        The published rows, then one row per method.

    Raises:
        UserError: If a folder is no run or was not evaluated, or if the scores of
            two do not compare.
    """
    published = PUBLISHED[name]
    records = {run: RunFolder(run).record() for run in runs}
    require_texts(runs)
    found = {run: scores for run in runs if (scores := read_scores(run, split))}
    for run in runs:
        if run not in found:
            raise UserError(
                f"{run} has no {split} scores; make them with: deltasam evaluate {run} --split "
                f"{split}"
            )
    require_comparable(found)
    rows: list[tuple[str, ...]] = [
        (row.system, *row.scores, row.scorer, row.seeds, row.hardware, row.hours)
        for row in published.rows
    ]
    for method in METHODS:
        chosen = [run for run in runs if records[run]["method"] == method]
        rows.append(_own_row(method, [(records[run], found[run]) for run in chosen]))
    return Table(_HEADER, rows, _note(published, list(records.values()), list(found.values())))


def _own_row(method: str, runs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[str, ...]:
    if not runs:
        return (f"ours: {method}", *(NOT_RUN,) * (len(_HEADER) - 1))
    means = (
        fmean(scores["systems"][MODEL][variant]["fmeasure"] for _, scores in runs)
        for variant in VARIANTS
    )
    seeds = ", ".join(sorted((str(record["seed"]) for record, _ in runs), key=int))
    hours = fmean(sum(s.get("seconds", 0) for s in record["starts"]) / 3600 for record, _ in runs)
    return (
        f"ours: {method}",
        *(f"{mean:.2f}" for mean in means),
        "see below",
        seeds if len(runs) == 1 else f"{seeds} (mean of {len(runs)})",
        "; ".join(sorted({_hardware(record) for record, _ in runs})),
        f"{hours:.2f}",
    )


def _hardware(record: dict[str, Any]) -> str:
    hardware = record.get("hardware", {})
    gpus = hardware.get("gpus")
    if gpus:
        return f"{record.get('gpus') or 1} {gpus[0]}"
    return f"{hardware.get('cores', NONE)} cores, {hardware.get('cpu', NONE)}"


def _note(
    published: PublishedTable, records: list[dict[str, Any]], found: list[dict[str, Any]]
) -> str:
    if not found:
        return published.note
    pairs = found[0]["n"]
    note = f"{published.note} Ours: F-measure, {pairs} pairs, {found[0]['signature']}"
    recipes = sorted({record["recipe"] for record in records})
    if pairs != published.pairs or recipes != [published.recipe]:
        note += (
            f". NOT COMPARABLE with the published rows: recipe {', '.join(recipes)} and {pairs:,} "
            f"pairs, where they have BART-large and {published.pairs:,}"
        )
    return note
