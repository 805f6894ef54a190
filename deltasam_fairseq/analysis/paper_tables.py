"""Tables 1, 2, 4 and 6 of the paper with our runs beside them, made from the records of sweeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median

from deltasam_fairseq.analysis.records import (
    Group,
    Groups,
    Record,
    collect,
    in_order,
    is_timed,
    pair_up,
)
from deltasam_fairseq.analysis.table import NONE, NOT_RUN, Table, difference, mean_and_std
from deltasam_fairseq.data.glue import GLUE
from deltasam_fairseq.data.sts import PAIRS
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.published import (
    BERT,
    METHOD_OF_ROW,
    MIRROR_BERT,
    MIRROR_ROBERTA,
    ROBERTA,
    ROW_OF_METHOD,
    TABLE_1,
    TABLE_2,
    TABLE_4,
    TABLE_4_TASKS,
    TABLE_6,
    TASKS,
    PublishedRow,
    Rows,
)
from deltasam_fairseq.registry import nearest

#: Our models that are those of a half of a table, and what that half is called here.
HALVES = {
    MIRROR_BERT: ("Mirror-BERT", ("bert_base_uncased",)),
    MIRROR_ROBERTA: ("Mirror-RoBERTa", ("roberta_base",)),
    BERT: ("BERT-base", ("bert_base_cased", "bert_base_uncased")),
    ROBERTA: ("RoBERTa-large", ("roberta_large",)),
}
#: Methods that the others' times are divided by; the paper has no time without perturbation.
_TIME_BASES = ("none", "sam")

_MIRROR = "mirror"

#: What kind of row it is, then its cells.
Line = tuple[str, ...]


@dataclass(frozen=True)
class Own:
    """What was run of a model and a method, for the recipes of a table.

    Args:
        groups: Everything that was run.
        recipes: In the order of the table's columns.
        model: The model.
        method: The method.
    """

    groups: Groups
    recipes: Sequence[str]
    model: str
    method: str

    @property
    def found(self) -> list[Group | None]:
        """The group of each recipe; none where nothing was run."""
        return [self.groups.get((recipe, self.model, self.method)) for recipe in self.recipes]

    @property
    def ran(self) -> bool:
        """Whether any of the recipes was run."""
        return any(self.found)


def pivot(
    groups: Groups,
    recipes: Sequence[str],
    published: Mapping[str, Rows],
    published_lines: Callable[[str, PublishedRow], Iterable[Line]],
    own_lines: Callable[[Own, PublishedRow | None], Iterable[Line]],
) -> Iterator[tuple[str, ...]]:
    """Yield the published rows, each followed by ours, and then what the paper has no row for.

    Args:
        groups: Everything that was run.
        recipes: The table's.
        published: The table's rows, by half and name.
        published_lines: Makes the lines of a published row, from its half and itself.
        own_lines: Makes our lines; of a method without a published row it gets none.
    """
    known = set()
    for half, rows in published.items():
        title, models = HALVES[half]
        for name, printed in rows.items():
            system = f"{title}, {name}"
            lines = list(published_lines(half, printed))
            yield from ((system, *line) for line in lines)
            method = METHOD_OF_ROW[name]
            known |= {(model, method) for model in models}
            every = [Own(groups, recipes, model, method) for model in models]
            for own in [own for own in every if own.ran] or every[:1]:
                yield from ((system, *line) for line in own_lines(own, printed))
    others = {("", *key[1:]) for key in groups if key[0] in recipes and key[1:] not in known}
    for _, model, method in in_order(others):
        own = Own(groups, recipes, model, method)
        yield from ((f"{model}, {method}", *line) for line in own_lines(own, None))


def table_1(
    folders: Sequence[Path], *, statistics: bool = False, model: str | None = None
) -> Table:
    """Return Table 1, the metrics of GLUE's tasks: median and best of n seeds.

    The differences are those of the best from the published number, or of the median where that
    is a median.

    Args:
        folders: With sweeps below them.
        statistics: Whether to add mean and standard deviation over seeds.
        model: The only one to show; none shows all.

    Raises:
        UserError: If the paper has no such model, and no run either.
    """
    groups = {key: group for key, group in collect(folders).items() if model in {None, key[1]}}
    halves = {half: rows for half, rows in TABLE_1.items() if model in {None, *HALVES[half][1]}}
    if not groups and not halves:
        printed = [name for half in TABLE_1 for name in HALVES[half][1]]
        raise UserError(f"no finished run of {model!r}{nearest(str(model), printed)}")
    header = ("system", "row", *(GLUE[task].name for task in TASKS), "average")
    rows = pivot(
        groups,
        _glue(TASKS),
        halves,
        lambda half, row: [("published", *row.cells, row.average)],
        partial(_metric_lines, statistics=statistics),
    )
    note = (
        "Metric of the paper on the validation set, in percent: accuracy (MNLI matched), CoLA "
        "Matthews, STS-B Pearson. Published: best of 5 seeds for R-Drop, SAM and δ-SAM, of 10 "
        "for R3F, of 3 for SMART, median of 5 for RoBERTa; * from a model trained on MNLI. "
        f"{_own_note(groups)}"
    )
    return Table(header, list(rows), note)


def _metric_lines(own: Own, printed: PublishedRow | None, *, statistics: bool) -> Iterator[Line]:
    name, found = f"ours, {own.model}", own.found
    if not own.ran:
        yield (name, *(NOT_RUN,) * (len(found) + 1))
        return
    values = {}
    for what, choose in (("median", median), ("best", max)):
        chosen = [choose(group.scores) if group else None for group in found]
        there = [value for value in chosen if value is not None]
        average = fmean(there) if len(there) == len(found) else None
        values[what] = [*chosen, average]
        cells = [
            NOT_RUN if group is None else f"{value:.2f} (n={len(group.records)})"
            for group, value in zip(found, chosen, strict=True)
        ]
        yield (f"{name}, {what}", *cells, NONE if average is None else f"{average:.2f}")
    if statistics:
        yield (f"{name}, mean ± std", *(mean_and_std(g.scores if g else ()) for g in found), NONE)
    if printed:
        what = "median" if printed.is_median else "best"
        differences = map(difference, values[what], (*printed.cells, printed.average))
        yield (f"{name}, {what} - published", *differences)


def table_2(folders: Sequence[Path]) -> Table:
    """Return Table 2: Spearman on the seven STS sets and their average, means over seeds.

    Args:
        folders: With sweeps below them.
    """
    groups = {key: group for key, group in collect(folders).items() if key[0] == _MIRROR}
    rows = pivot(
        groups,
        [_MIRROR],
        TABLE_2,
        lambda half, row: [("published", *row.cells, row.average)],
        _sts_lines,
    )
    chosen = "; ".join(f"{' '.join(key[1:])}: {group}" for key, group in sorted(groups.items()))
    note = (
        "Spearman's correlation in percent of cosines with the scores of all pairs of a set "
        "(setting all), mean over seeds; published: of 5. Hyperparameters are to be chosen on "
        f"STS-B's development set. Ours: {chosen or 'no sweep of mirror has a finished run yet'}."
    )
    return Table(("system", "row", *PAIRS, "average"), list(rows), note)


def _sts_lines(own: Own, printed: PublishedRow | None) -> Iterator[Line]:
    (group,) = own.found
    names = (*PAIRS, "average")
    if group is None:
        yield (f"ours, {own.model}", *(NOT_RUN,) * len(names))
        return
    metrics = [record["metrics"] for record in group.records]
    means = [fmean(one[name] for one in metrics) for name in names]
    count = len(group.records)
    yield (f"ours, {own.model}, n={count}", *(f"{value:.2f}" for value in means))
    if count > 1:
        spread = (mean_and_std([one[name] for one in metrics]) for name in names)
        yield (f"ours, {own.model}, mean ± std", *spread)
    if printed:
        published = (*printed.cells, printed.average)
        yield ("ours - published", *map(difference, means, published))


def table_4(folders: Sequence[Path], *, statistics: bool = False) -> Table:
    """Return Table 4: adversarial risk, and median and best accuracy, on MRPC and RTE.

    Args:
        folders: With sweeps below them.
        statistics: Whether to add mean and standard deviation over seeds.
    """
    groups = collect(folders)
    names = (GLUE[task].name for task in TABLE_4_TASKS)
    header = (
        "system",
        "row",
        *(f"{name} {what}" for name in names for what in ("risk", "med/max")),
    )
    rows = pivot(
        groups,
        _glue(TABLE_4_TASKS),
        TABLE_4,
        lambda half, row: [("published", *row.cells)],
        partial(_risk_lines, statistics=statistics),
    )
    return Table(header, list(rows), _risk_note(groups))


def _risk_lines(own: Own, printed: PublishedRow | None, *, statistics: bool) -> Iterator[Line]:
    name, found = f"ours, {own.model}", own.found
    yield (name, *(cell for group in found for cell in _risk_cells(group)))
    if statistics and own.ran:
        pairs = (
            (mean_and_std(g.risks, 3), mean_and_std(g.scores)) if g else (NOT_RUN,) * 2
            for g in found
        )
        yield (f"{name}, mean ± std", *(cell for pair in pairs for cell in pair))
    if printed and own.ran:
        sides = zip(found, printed.cells[::2], printed.cells[1::2], strict=True)
        cells = (cell for group, *cells in sides for cell in _risk_differences(group, *cells))
        yield ("ours - published", *cells)


def _risk_cells(group: Group | None) -> tuple[str, str]:
    if group is None:
        return NOT_RUN, NOT_RUN
    risks, scores = group.risks, group.scores
    return (
        f"{fmean(risks):.3f} (n={len(risks)})" if risks else NOT_RUN,
        f"{median(scores):.2f}/{max(scores):.2f} (n={len(scores)})",
    )


def _risk_differences(group: Group | None, risk: str, accuracy: str) -> tuple[str, str]:
    if group is None:
        return NONE, NONE
    middle, best = accuracy.split("/")
    return (
        difference(fmean(group.risks) if group.risks else None, risk),
        f"{difference(median(group.scores), middle)}/{difference(max(group.scores), best)}",
    )


def _risk_note(groups: Groups) -> str:
    records = (record for group in groups.values() for record in group.records)
    risks = [record["adversarial_risk"] for record in records if "adversarial_risk" in record]
    kinds = sorted({(str(risk["rho"]), risk["split"]) for risk in risks})
    own = "; ".join(f"rho {rho}, split {split}" for rho, split in kinds) or NOT_RUN
    return (
        "Adversarial risk of Eq. 2 in nats, mean over seeds (the paper: rho 0.05, it does not say "
        f"which split; ours: {own}); accuracy as median/best. {_own_note(groups)}"
    )


def table_6(folders: Sequence[Path]) -> Table:
    """Return Table 6: minutes of training, and times over those of SAM.

    Ours are divided by the base's, update by update, with the same seed on the same machine.
    """
    sam = {half: rows[ROW_OF_METHOD["sam"]] for half, rows in TABLE_6.items()}

    def published_lines(half: str, row: PublishedRow) -> Iterator[Line]:
        yield ("published, minutes", *row.cells)
        if row != sam[half]:
            yield ("published, over SAM", *map(_over, row.cells, sam[half].cells))

    rows = pivot(collect(folders), _glue(TASKS), TABLE_6, published_lines, _time_lines)
    note = (
        "Published: minutes on one RTX 2080, for the same number of epochs with every method. "
        "Ours: minutes of fairseq-train with validation and saving, mean ± std over n seeds; over "
        "none and over sam: time of one update divided by that of the run with the same seed on "
        "the same kind of machine; processor time without a GPU, where both records have it. Runs "
        "that were broken off are left out, the time of a killed start is not known. Runs that "
        "shared their machine with others, or each other, give noise, in processor time less of "
        "it: what a method costs is measured by deltasam bench step."
    )
    return Table(("system", "row", *(GLUE[task].name for task in TASKS)), list(rows), note)


def _over(cell: str, base: str) -> str:
    return NONE if NONE in {cell, base} else f"{float(cell) / float(base):.2f}"


def _time_lines(own: Own, printed: PublishedRow | None) -> Iterator[Line]:
    timed = [[r for r in group.records if is_timed(r)] if group else [] for group in own.found]
    minutes = ([record["seconds"]["train"] / 60 for record in records] for records in timed)
    yield (f"ours, {own.model}, minutes", *map(mean_and_std, minutes))
    for method in _TIME_BASES:
        base = replace(own, method=method)
        if method != own.method and base.ran:
            cells = [
                mean_and_std(_ratios(*both)) for both in zip(own.found, base.found, strict=True)
            ]
            if any(cell != NOT_RUN for cell in cells):
                yield (f"ours, {own.model}, over {method}", *cells)


def _ratios(group: Group | None, base: Group | None) -> list[float]:
    """Divide the time of an update by the base's, for each seed that both have."""
    if group is None or base is None:
        return []
    pairs = zip(*(one.records for one in pair_up(group, base)), strict=True)
    return [
        _ratio(one, other)
        for one, other in pairs
        if is_timed(one) and is_timed(other) and _machine(one) == _machine(other)
    ]


def _ratio(record: Record, base: Record) -> float:
    known = all("train_processor" in one["seconds"] for one in (record, base))
    clock = "train_processor" if known and not record["hardware"].get("gpus") else "train"
    time, base_time = (one["seconds"][clock] / one["updates"] for one in (record, base))
    return float(time / base_time)


def _machine(record: Record) -> tuple[str, ...]:
    return tuple(str(record["hardware"].get(name)) for name in ("cpu", "cores", "threads", "gpus"))


def _glue(tasks: Iterable[str]) -> list[str]:
    return [f"glue/{task}" for task in tasks]


def _own_note(groups: Groups) -> str:
    """Say which points and seeds are shown, and what is not."""
    shown = {key: group for key, group in groups.items() if key[0] in _glue(TASKS)}
    elsewhere = sorted({recipe for recipe, _, _ in groups.keys() - shown.keys()})
    others_note = (
        f" Not in this table, but in deltasam table grid: {', '.join(elsewhere)}."
        if elsewhere
        else ""
    )
    if not shown:
        return f"Ours: no sweep has a finished run yet.{others_note}"
    chosen = "; ".join(f"{' '.join(key)}: {group}" for key, group in sorted(shown.items()))
    seeds: dict[str, set[tuple[int, ...]]] = {}
    for (recipe, model, _), group in shown.items():
        seeds.setdefault(f"{recipe} {model}", set()).add(tuple(group.seeds))
    unequal = sorted(system for system, sets in seeds.items() if len(sets) > 1)
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
