"""Records of sweeps, sorted into the groups that tables show and tests compare."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.catalogue import RECIPES
from deltasam_fairseq.recipes.methods import in_usual_order
from deltasam_fairseq.recipes.sweep_folder import read_records
from deltasam_fairseq.recipes.sweep_plan import as_number, flag_of
from deltasam_fairseq.registry import nearest

T = TypeVar("T")
Record = Mapping[str, Any]
#: Recipe, model and method.
Key = tuple[str, str, str]
#: Values of a grid, by name.
Point = tuple[tuple[str, str], ...]
#: Flags that say what a run is and where it lies, not how it was trained; the model's file is
#: compared by its checksum.
OWN_FLAGS = ("seed", "save-dir", "user-dir", "sam-method", "restore-file")


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed.

    Args:
        grid: Values of the search, by name.
        records: Their records, one per seed, in the order of the seeds.
        points: Number of points of the grid that it was chosen from, by its scores.
    """

    grid: Mapping[str, str]
    records: Sequence[Record]
    points: int = 1

    @property
    def seeds(self) -> list[int]:
        """The seed of each."""
        return [record["seed"] for record in self.records]

    @property
    def metric(self) -> str:
        """The name of the task's metric, the first of a record's."""
        return str(next(iter(self.records[0]["metrics"])))

    @property
    def scores(self) -> list[float]:
        """The task's metric of each, in percent."""
        return [float(record["metrics"][self.metric]) for record in self.records]

    @property
    def risks(self) -> list[float]:
        """The adversarial risk of each that has one."""
        return [r["adversarial_risk"]["risk"] for r in self.records if "adversarial_risk" in r]

    def __str__(self) -> str:
        """Return the point of the grid and the seeds, for the note of a table."""
        values = [f"{name} {value}" for name, value in self.grid.items()]
        return ", ".join([*values, f"seeds {','.join(map(str, self.seeds))}"])


Groups = Mapping[Key, Group]


def pair_up(group: Group, other: Group) -> tuple[Group, Group]:
    """Keep of two groups the runs whose seed the other has too, in the same order."""
    shared = {*group.seeds} & {*other.seeds}
    return _with_seeds(group, shared), _with_seeds(other, shared)


def _with_seeds(group: Group, seeds: Collection[int]) -> Group:
    return replace(group, records=[r for r in group.records if r["seed"] in seeds])


def read_points(folders: Iterable[Path]) -> dict[Key, list[Group]]:
    """Read the records below folders and sort them by what they differ in.

    Returns:
        By recipe, model and method: the points of the grid, in the order of their values.

    Raises:
        UserError: If a method is unknown, or if records do not compare: those of one recipe and
            model that were scored on different data, those of one method that differ in a flag
            which is no name of their grid.
    """
    found: dict[Key, dict[Point, list[Record]]] = {}
    systems: dict[tuple[str, str], list[Record]] = {}
    for record in read_records(folders):
        key = (record["recipe"], record["model"], record["method"])
        if key[0] in RECIPES:
            try:
                RECIPES.get(key[0]).method(key[2])
            except UserError as error:
                raise UserError(f"a record of {key[0]} has an {error}") from None
        point = tuple(sorted(record["grid"].items()))
        found.setdefault(key, {}).setdefault(point, []).append(record)
        systems.setdefault(key[:2], []).append(record)
    for (recipe, model), records in systems.items():
        _require_comparable(recipe, model, records)
    for key, points in found.items():
        for alike in points.values():
            _require_equal_flags(key, alike)
        searched = {flag_of(name) for point in points for name, _ in point}
        every = [record for records in points.values() for record in records]
        _require_equal_flags(key, every, besides=searched)
    return {
        key: [
            Group(points[point][0]["grid"], _one_per_seed(key, points[point]))
            for point in sorted(points, key=_by_value)
        ]
        for key, points in found.items()
    }


def collect(folders: Iterable[Path]) -> dict[Key, Group]:
    """Return one point of each grid, by recipe, model and method.

    It is, of the points with the most seeds, the one with the highest median. The paper chooses
    so as well: on the validation set that it reports.
    """
    return {key: _best(groups) for key, groups in read_points(folders).items()}


def select(found: Mapping[Key, T], recipe: str | None, model: str | None) -> dict[Key, T]:
    """Return what belongs to one recipe and one model; none keeps all.

    Raises:
        UserError: If nothing was run of one that is named; the message has the nearest name.
    """
    for place, name in ((0, recipe), (1, model)):
        known = {key[place] for key in found}
        if name is not None and name not in known:
            raise UserError(f"no finished run of {name!r}{nearest(name, known)}")
    return {
        key: value
        for key, value in found.items()
        if recipe in {None, key[0]} and model in {None, key[1]}
    }


def in_order(keys: Iterable[Key]) -> list[Key]:
    """Sort by recipe and model, methods in their usual order."""
    found = list(keys)
    places = in_usual_order({key[2] for key in found})
    return sorted(found, key=lambda key: (key[0], key[1], places.index(key[2])))


def is_timed(record: Record) -> bool:
    """Tell whether the time of a run's training is known: that of a killed start is not."""
    return bool(record["interruptions"] == 0 and record["seconds"]["train"] > 0)


def _best(groups: Sequence[Group]) -> Group:
    most = max(len(group.records) for group in groups)
    rivals = [group for group in groups if len(group.records) == most]
    return replace(max(rivals, key=lambda group: median(group.scores)), points=len(rivals))


def _by_value(point: Point) -> list[tuple[str, bool, float | str]]:
    values = [(name, as_number(text)) for name, text in point]
    return [(name, isinstance(value, str), value) for name, value in values]


def _require_comparable(recipe: str, model: str, records: Sequence[Record]) -> None:
    for what in ("data_sha256", "signature", "n", "encoder_sha256", "recipe_version"):
        if len({str(record.get(what)) for record in records}) > 1:
            raise UserError(
                f"{recipe} {model}: the records differ in {what}, so they do not compare; "
                "name one of the sweeps with --sweeps"
            )
    risks = (record["adversarial_risk"] for record in records if "adversarial_risk" in record)
    kinds = sorted({f"rho {risk['rho']} on {risk['split']}" for risk in risks})
    if len(kinds) > 1:
        raise UserError(
            f"{recipe} {model}: the records have adversarial risks of different kinds "
            f"({', '.join(kinds)}), which do not compare; name one of the sweeps with --sweeps"
        )


def _require_equal_flags(
    key: Key, records: Sequence[Record], besides: Collection[str] = ()
) -> None:
    settings = [record["flags"] for record in records]
    names = {name for flags in settings for name in flags}
    for name in sorted(names - {*OWN_FLAGS, *besides}):
        values = {flags.get(name, "not given") for flags in settings}
        if len({as_number(text) for text in values}) > 1:
            raise UserError(
                f"{' '.join(key)}: the records differ in --{name} "
                f"({', '.join(sorted(values))}) and not by "
                "a grid, so they cannot share a cell; name one of the sweeps with --sweeps"
            )


def _one_per_seed(key: Key, records: Sequence[Record]) -> list[Record]:
    seeds = [record["seed"] for record in records]
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"{' '.join(key)}: two records have the same seed; name one of the sweeps with --sweeps"
        )
    return sorted(records, key=lambda record: int(record["seed"]))
