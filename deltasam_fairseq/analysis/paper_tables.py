"""Tables 1 and 4 of the paper with our runs beside them, made from the records of sweeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev

from deltasam_fairseq.analysis.sweep_cells import ORDER, Group, Key, collect, describe_grid
from deltasam_fairseq.analysis.table import NONE, NOT_RUN, Table
from deltasam_fairseq.data.glue import GLUE
from deltasam_fairseq.recipes.glue_published import (
    BERT,
    MEDIANS,
    ROBERTA,
    ROW_OF_METHOD,
    TABLE_1,
    TABLE_4,
    TABLE_4_TASKS,
    TASKS,
)

#: Our models that are those of a half of Table 1, and what that half is called here.
HALVES = {
    BERT: ("BERT-base", ("bert_base_cased", "bert_base_uncased")),
    ROBERTA: ("RoBERTa-large", ("roberta_large",)),
}
METHOD_OF_ROW = {row: method for method, row in ROW_OF_METHOD.items()}

Groups = Mapping[Key, Group]


def table_1(folders: Sequence[Path], *, statistics: bool = False) -> Table:
    """Build Table 1: the GLUE tasks, the validation metric.

    Args:
        folders: With sweeps below them.
        statistics: Whether to add mean and standard deviation over seeds.

    Returns:
        The rows of the paper, each followed by ours: median, best of n, and the difference of
        the best from the published number, or of the median where that is one. Then what the
        paper has not.
    """
    groups = collect(folders)
    header = ("system", "row", *(GLUE[task].name for task in TASKS), "average")
    rows: list[tuple[str, ...]] = []
    for half, (title, models) in HALVES.items():
        for name, cells in TABLE_1[half].items():
            average, *numbers = cells
            rows.append((f"{title}, {name}", "published", *numbers, average))
            method = METHOD_OF_ROW.get(name)
            if method is None:
                rows.append((f"{title}, {name}", "ours", *(NOT_RUN,) * len(numbers), NOT_RUN))
                continue
            ran = [model for model in models if any_task(groups, model, method)] or models[:1]
            for model in ran:
                system = f"{title}, {name}"
                rows += _ours(groups, system, model, method, statistics=statistics)
                rows += _differences(
                    *(groups, system, model, method),
                    printed=cells,
                    is_median=(half, name) in MEDIANS,
                )
    rows += _others(groups, statistics)
    return Table(header, rows, _note_1(groups))


def table_4(folders: Sequence[Path], *, statistics: bool = False) -> Table:
    """Build Table 4: adversarial risk, and median and best accuracy, on MRPC and RTE.

    Args:
        folders: With sweeps below them.
        statistics: Whether to add mean and standard deviation over seeds.

    Returns:
        Published and ours for BERT, then what the paper has not.
    """
    groups = collect(folders)
    header = (
        *("system", "row"),
        *(f"{GLUE[task].name} {what}" for task in TABLE_4_TASKS for what in ("risk", "med/max")),
    )
    title, models = HALVES[BERT]
    rows: list[tuple[str, ...]] = []
    for name in TABLE_4[TABLE_4_TASKS[0]]:
        printed = [TABLE_4[task][name] for task in TABLE_4_TASKS]
        cells = (cell for risk, mid, top in printed for cell in (risk, f"{mid}/{top}"))
        rows.append((f"{title}, {name}", "published", *cells))
        method = METHOD_OF_ROW[name]
        for model in [m for m in models if any_task(groups, m, method)] or models[:1]:
            system = f"{title}, {name}"
            rows += _risk_rows(groups, system, model, method, printed, statistics=statistics)
    for model, method in others(groups, {BERT: TABLE_4[TABLE_4_TASKS[0]]}):
        if any((f"glue/{task}", model, method) in groups for task in TABLE_4_TASKS):
            rows += _risk_rows(
                groups, f"{model}, {method}", model, method, None, statistics=statistics
            )
    return Table(header, rows, _note_4(groups))


def any_task(groups: Groups, model: str, method: str) -> bool:
    """Tell whether there is a run of any of GLUE's tasks."""
    return any((f"glue/{task}", model, method) in groups for task in TASKS)


def others(groups: Groups, table: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """List what was run and has no row in a table of the paper.

    Args:
        groups: What was run.
        table: Names of rows, by the half of the table.

    Returns:
        Model and method, methods in their usual order.
    """
    known = {
        (model, METHOD_OF_ROW.get(row))
        for half, rows in table.items()
        for model in HALVES[half][1]
        for row in rows
    }
    found = {(model, method) for _, model, method in groups} - known
    return sorted(found, key=lambda pair: (pair[0], ORDER.index(pair[1])))


def _ours(
    groups: Groups,
    system: str,
    model: str,
    method: str,
    *,
    statistics: bool,
) -> Iterator[tuple[str, ...]]:
    found = [groups.get((f"glue/{task}", model, method)) for task in TASKS]
    name = f"ours, {model}"
    if not any(found):
        yield (system, name, *(NOT_RUN,) * len(TASKS), NOT_RUN)
        return
    for what, choose in (("median", median), ("best", max)):
        values = [choose(group.scores) if group else None for group in found]
        cells = [
            NOT_RUN if group is None else f"{value:.2f} (n={len(group.records)})"
            for group, value in zip(found, values, strict=True)
        ]
        average = _average(values)
        yield (system, f"{name}, {what}", *cells, NONE if average is None else f"{average:.2f}")
    if statistics:
        cells = [NOT_RUN if group is None else spread(group.scores) for group in found]
        yield (system, f"{name}, mean ± std", *cells, NONE)


def _differences(
    groups: Groups,
    system: str,
    model: str,
    method: str,
    *,
    printed: Sequence[str],
    is_median: bool,
) -> Iterator[tuple[str, ...]]:
    """Yield our best minus the published best, or our median minus a published median."""
    what, choose = ("median", median) if is_median else ("best", max)
    found = [groups.get((f"glue/{task}", model, method)) for task in TASKS]
    values = [choose(group.scores) if group else None for group in found]
    cells = [
        _difference(value, cell)
        for value, cell in zip([*values, _average(values)], [*printed[1:], printed[0]], strict=True)
    ]
    if any(found):
        yield (system, f"ours, {model}, {what} - published", *cells)


def _average(values: Sequence[float | None]) -> float | None:
    """Return the mean over all tasks, or none if one is missing."""
    there = [value for value in values if value is not None]
    return fmean(there) if len(there) == len(values) else None


def _others(groups: Groups, statistics: bool) -> list[tuple[str, ...]]:
    return [
        row
        for model, method in others(groups, TABLE_1)
        for row in _ours(groups, f"{model}, {method}", model, method, statistics=statistics)
    ]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Write mean, standard deviation and number.

    Args:
        values: One per seed, maybe none.
        digits: Behind the point.

    Returns:
        A cell.

    Example:
        >>> spread([70.0, 71.0, 75.0])
        '72.00 ± 2.65 (n=3)'
    """
    if not values:
        return NOT_RUN
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{deviation} (n={len(values)})"


def _difference(value: float | None, printed: str) -> str:
    number = printed.rstrip("*")
    return NONE if value is None or number == NONE else f"{value - float(number):+.2f}"


def _risk_rows(
    groups: Groups,
    system: str,
    model: str,
    method: str,
    printed: Sequence[tuple[str, str, str]] | None,
    *,
    statistics: bool,
) -> Iterator[tuple[str, ...]]:
    found = [groups.get((f"glue/{task}", model, method)) for task in TABLE_4_TASKS]
    cells: list[str] = []
    differences: list[str] = []
    for number, group in enumerate(found):
        risk = fmean(group.risks) if group and group.risks else None
        cells.append(
            NOT_RUN if risk is None or group is None else f"{risk:.3f} (n={len(group.risks)})"
        )
        if group is None:
            cells.append(NOT_RUN)
        else:
            both = f"{median(group.scores):.2f}/{max(group.scores):.2f}"
            cells.append(f"{both} (n={len(group.records)})")
        if printed is not None:
            published_risk, mid, top = printed[number]
            differences.append(_difference(risk, published_risk))
            sides = ((median, mid), (max, top))
            values = [
                _difference(choose(group.scores) if group else None, p) for choose, p in sides
            ]
            differences.append(NONE if group is None else "/".join(values))
    yield (system, f"ours, {model}", *cells)
    if statistics and any(found):
        pairs = ((spread(g.risks, 3), spread(g.scores)) if g else (NOT_RUN,) * 2 for g in found)
        yield (system, f"ours, {model}, mean ± std", *(cell for pair in pairs for cell in pair))
    if printed is not None and any(found):
        yield (system, "ours - published", *differences)


def _note_1(groups: Groups) -> str:
    return (
        "Metric of the paper on the validation set, in percent: accuracy (MNLI matched), CoLA "
        "Matthews, STS-B Pearson. Published: best of 5 seeds for R-Drop, SAM and δ-SAM, of 10 "
        "for R3F, of 3 for SMART, median of 5 for RoBERTa; * from a model trained on MNLI. "
        f"{_ours_note(groups)}"
    )


def _note_4(groups: Groups) -> str:
    radii = sorted(
        {
            (str(record["adversarial_risk"]["rho"]), record["adversarial_risk"]["split"])
            for group in groups.values()
            for record in group.records
            if "adversarial_risk" in record
        }
    )
    ours = "; ".join(f"rho {rho}, split {split}" for rho, split in radii) or NOT_RUN
    return (
        "Adversarial risk of Eq. 2 in nats, mean over seeds (the paper: rho 0.05, it does not say "
        f"which split; ours: {ours}); accuracy as median/best. {_ours_note(groups)}"
    )


def _ours_note(groups: Groups) -> str:
    elsewhere = sorted({key[0] for key in groups if key[0].removeprefix("glue/") not in TASKS})
    others_note = (
        f" Not in this table, but in deltasam table grid: {', '.join(elsewhere)}."
        if elsewhere
        else ""
    )
    shown = {key: group for key, group in groups.items() if key[0] not in elsewhere}
    if not shown:
        return f"Ours: no sweep has a finished run yet.{others_note}"
    chosen = "; ".join(
        f"{recipe} {model} {method}: {describe_grid(group)}"
        for (recipe, model, method), group in sorted(shown.items())
    )
    seeds: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    for (recipe, model, _), group in shown.items():
        own = tuple(sorted(record["seed"] for record in group.records))
        seeds.setdefault((recipe, model), set()).add(own)
    unequal = sorted(
        f"{recipe} {model}" for (recipe, model), sets in seeds.items() if len(sets) > 1
    )
    warning = (
        f" The methods of {', '.join(unequal)} have different seeds: their rows are not "
        "comparable, deltasam table significance takes the seeds that two methods share."
        if unequal
        else ""
    )
    return (
        "Ours: best is the highest of n seeds, of the point of the grid named here. "
        f"{chosen}.{warning}{others_note}"
    )
