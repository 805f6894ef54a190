"""From the records of sweeps to the cells of the paper's tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypeVar

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.methods import CONTROLS
from deltasam_fairseq.recipes.sweep_folder import read_records
from deltasam_fairseq.recipes.sweep_plan import as_number, flag_of
from deltasam_fairseq.registry import nearest

T = TypeVar("T")
#: Recipe, model and method.
Key = tuple[str, str, str]
#: Values of a grid, by name.
Point = tuple[tuple[str, str], ...]
#: Flags that say what a run is and where it lies, not how it was trained; the model's file is
#: compared by its checksum.
OWN_FLAGS = ("seed", "save-dir", "user-dir", "sam-method", "restore-file")
#: Of methods in tables.
ORDER = (*METHODS, *CONTROLS)


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed.

    Args:
        grid: Values of the search, by name.
        records: Their records, one per seed, in the order of the seeds.
        points: Number of points of the grid that it was chosen from, by its scores.
    """

    grid: Mapping[str, str]
    records: Sequence[Mapping[str, Any]]
    points: int = 1

    @property
    def seeds(self) -> list[int]:
        """The seed of each."""
        return [record["seed"] for record in self.records]

    @property
    def scores(self) -> list[float]:
        """The task's metric of each, in percent."""
        return [_score(record) for record in self.records]

    @property
    def risks(self) -> list[float]:
        """The adversarial risk of each that has one."""
        return [r["adversarial_risk"]["risk"] for r in self.records if "adversarial_risk" in r]

    @property
    def seconds(self) -> float:
        """Mean time of training."""
        return fmean(record["seconds"]["train"] for record in self.records)


@dataclass(frozen=True)
class Pair:
    """Runs of two methods with the same seeds.

    Args:
        records: Of one method.
        others: Of the other, with the seeds of ``records`` in their order.
    """

    records: Sequence[Mapping[str, Any]]
    others: Sequence[Mapping[str, Any]]

    @property
    def seeds(self) -> list[int]:
        """The seeds."""
        return [record["seed"] for record in self.records]

    @property
    def differences(self) -> list[float]:
        """The task's metric of one minus that of the other, by seed, in points."""
        return [_score(a) - _score(b) for a, b in zip(self.records, self.others, strict=True)]

    @property
    def has_examples(self) -> bool:
        """Whether every record holds its predictions for the single sentences."""
        return all("examples" in record for record in (*self.records, *self.others))


def pair_up(group: Group, other: Group) -> Pair:
    """Find the runs of two groups that share a seed.

    Args:
        group: Runs of one method.
        other: Runs of another, of the same recipe and model.

    Returns:
        The pairs, maybe none.
    """
    by_seed = {record["seed"]: record for record in other.records}
    shared = [record for record in group.records if record["seed"] in by_seed]
    return Pair(shared, [by_seed[record["seed"]] for record in shared])


def _score(record: Mapping[str, Any]) -> float:
    return float(next(iter(record["metrics"].values())))


def read_points(folders: Iterable[Path]) -> dict[Key, list[Group]]:
    """Read records and sort them by what they differ in.

    Args:
        folders: With sweeps below them.

    Returns:
        By recipe, model and method: the points of the grid, in the order of their values.

    Raises:
        UserError: If a method is unknown, or if records do not compare: those of one recipe and
            model that were scored on different data, those of one method that differ in a flag
            which is no name of their grid.
    """
    found: dict[Key, dict[Point, list[dict[str, Any]]]] = {}
    systems: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in read_records(folders):
        key = (record["recipe"], record["model"], record["method"])
        if key[2] not in ORDER:
            raise UserError(
                f"a record of {key[0]} has the method {key[2]!r}{nearest(key[2], ORDER)}"
            )
        point = tuple(sorted(record["grid"].items()))
        found.setdefault(key, {}).setdefault(point, []).append(record)
        systems.setdefault(key[:2], []).append(record)
    for (recipe, model), records in systems.items():
        _require_comparable(recipe, model, records)
        _require_one_risk(recipe, model, records)
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
    """Read records and choose a point of the grid for each cell.

    Args:
        folders: With sweeps below them.

    Returns:
        By recipe, model and method: of the points with the most seeds the one with the
        highest median, as the paper chooses: on the validation set that it reports.
    """
    return {key: _best(groups) for key, groups in read_points(folders).items()}


def select(found: Mapping[Key, T], recipe: str | None, model: str | None) -> dict[Key, T]:
    """Leave out other recipes and models.

    Args:
        found: Anything by recipe, model and method.
        recipe: The only one to keep; none keeps all.
        model: The only one to keep; none keeps all.

    Returns:
        What is left.

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
    return sorted(keys, key=lambda key: (key[0], key[1], ORDER.index(key[2])))


def _best(groups: Sequence[Group]) -> Group:
    most = max(len(group.records) for group in groups)
    rivals = [group for group in groups if len(group.records) == most]
    return replace(max(rivals, key=lambda group: median(group.scores)), points=len(rivals))


def _by_value(point: Point) -> list[tuple[str, bool, float | str]]:
    values = [(name, as_number(text)) for name, text in point]
    return [(name, isinstance(value, str), value) for name, value in values]


def _require_comparable(recipe: str, model: str, records: Sequence[Mapping[str, Any]]) -> None:
    for what in ("data_sha256", "signature", "n", "encoder_sha256", "recipe_version"):
        values = {str(record.get(what)) for record in records}
        if len(values) > 1:
            raise UserError(
                f"{recipe} {model}: the records differ in {what}, so they do not compare; "
                "name one of the sweeps with --sweeps"
            )


def _require_one_risk(recipe: str, model: str, records: Sequence[Mapping[str, Any]]) -> None:
    risks = (record["adversarial_risk"] for record in records if "adversarial_risk" in record)
    kinds = sorted({f"rho {risk['rho']} on {risk['split']}" for risk in risks})
    if len(kinds) > 1:
        raise UserError(
            f"{recipe} {model}: the records have adversarial risks of different kinds "
            f"({', '.join(kinds)}), which do not compare; name one of the sweeps with --sweeps"
        )


def _require_equal_flags(
    key: Key, records: Sequence[Mapping[str, Any]], besides: Collection[str] = ()
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


def _one_per_seed(key: Key, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    seeds = [record["seed"] for record in records]
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"{' '.join(key)}: two records have the same seed; name one of the sweeps with --sweeps"
        )
    return sorted(records, key=lambda record: int(record["seed"]))


def describe_grid(group: Group) -> str:
    """Write the chosen point, and the seeds.

    Args:
        group: The runs.

    Returns:
        For a note below a table.
    """
    values = [f"{name} {value}" for name, value in group.grid.items()]
    return ", ".join([*values, f"seeds {','.join(map(str, group.seeds))}"])
