"""Table 6 of the paper, minutes of training, with the times of our runs beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltasam_fairseq.analysis.paper_tables import HALVES, METHOD_OF_ROW, any_task, others, spread
from deltasam_fairseq.analysis.sweep_cells import Group, Key, collect, pair_up
from deltasam_fairseq.analysis.table import NONE, NOT_RUN, Table
from deltasam_fairseq.data.glue import GLUE
from deltasam_fairseq.recipes.glue_published import ROW_OF_METHOD, TABLE_6, TASKS

#: Methods that the others' times are divided by; the paper has no time without perturbation.
_BASES = ("none", "sam")

_NOTE = (
    "Published: minutes on one RTX 2080, for the same number of epochs with every method. Ours: "
    "minutes of fairseq-train with validation and saving, mean ± std over n seeds; over none and "
    "over sam: time of one update divided by that of the run with the same seed on the "
    "same kind of machine; processor time without a GPU, where both records have it. Runs that "
    "were broken off are left out, the time of a killed start is not known. Runs that shared "
    "their machine with others, or each other, give noise, in processor time less of it: what a "
    "method costs is measured by deltasam bench step."
)

Groups = Mapping[Key, Group]


def table_6(folders: Sequence[Path]) -> Table:
    """Build Table 6: what each method costs.

    Args:
        folders: With sweeps below them.

    Returns:
        The rows of the paper, and its times over SAM's. Then ours: minutes, and times of one
        update over those of the base with the same seed on the same machine.
    """
    groups = collect(folders)
    rows: list[tuple[str, ...]] = []
    for half, (title, models) in HALVES.items():
        for name, cells in TABLE_6[half].items():
            rows.append((f"{title}, {name}", "published, minutes", *cells))
            if name != ROW_OF_METHOD["sam"]:
                over = map(_over, cells, TABLE_6[half][ROW_OF_METHOD["sam"]])
                rows.append((f"{title}, {name}", "published, over SAM", *over))
            method = METHOD_OF_ROW[name]
            for model in [m for m in models if any_task(groups, m, method)] or models[:1]:
                rows += _ours(groups, f"{title}, {name}", model, method)
    for model, method in others(groups, TABLE_6):
        if any_task(groups, model, method):
            rows += _ours(groups, f"{model}, {method}", model, method)
    return Table(("system", "row", *(GLUE[task].name for task in TASKS)), rows, _NOTE)


def _over(cell: str, base: str) -> str:
    return NONE if NONE in {cell, base} else f"{float(cell) / float(base):.2f}"


def _ours(groups: Groups, system: str, model: str, method: str) -> Iterator[tuple[str, ...]]:
    found = [groups.get((f"glue/{task}", model, method)) for task in TASKS]
    yield (system, f"ours, {model}, minutes", *map(_minutes, found))
    for base in _BASES:
        if method == base or not any_task(groups, model, base):
            continue
        cells = [
            _ratios(f"glue/{task}", model, group, groups.get((f"glue/{task}", model, base)))
            for task, group in zip(TASKS, found, strict=True)
        ]
        if any(cell != NOT_RUN for cell in cells):
            yield (system, f"ours, {model}, over {base}", *cells)


def _minutes(group: Group | None) -> str:
    records = group.records if group else ()
    return spread([r["seconds"]["train"] / 60 for r in records if is_timed(r)])


def _ratios(recipe: str, model: str, group: Group | None, base: Group | None) -> str:
    if group is None or base is None:
        return NOT_RUN
    pair = pair_up(group, base)
    return spread(
        [
            _ratio(one, other)
            for one, other in zip(pair.records, pair.others, strict=True)
            if is_timed(one) and is_timed(other) and _machine(one) == _machine(other)
        ]
    )


def is_timed(record: Mapping[str, Any]) -> bool:
    """Tell whether the time of a run's training is known: that of a killed start is not."""
    return bool(record["interruptions"] == 0 and record["seconds"]["train"] > 0)


def _ratio(record: Mapping[str, Any], base: Mapping[str, Any]) -> float:
    both = (record, base)
    known = all("train_processor" in r["seconds"] for r in both)
    clock = "train_processor" if known and not record["hardware"].get("gpus") else "train"
    one, other = (r["seconds"][clock] / r["updates"] for r in both)
    return float(one / other)


def _machine(record: Mapping[str, Any]) -> tuple[Any, ...]:
    hardware = record["hardware"]
    return tuple(str(hardware.get(name)) for name in ("cpu", "cores", "threads", "gpus"))
