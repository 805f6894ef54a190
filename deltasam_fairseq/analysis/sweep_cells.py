"""From the records of sweeps to the cells of the paper's tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.sweep_folder import read_records

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed.

    Args:
        grid: Values of the search, by name.
        records: Their records, one per seed.
    """

    grid: Mapping[str, str]
    records: Sequence[Mapping[str, Any]]

    @property
    def scores(self) -> list[float]:
        """The task's metric of each, in percent."""
        return [next(iter(record["metrics"].values())) for record in self.records]

    @property
    def risks(self) -> list[float]:
        """The adversarial risk of each that has one."""
        return [r["adversarial_risk"]["risk"] for r in self.records if "adversarial_risk" in r]

    @property
    def seconds(self) -> float:
        """Mean time of training."""
        return fmean(record["seconds"]["train"] for record in self.records)


def collect(folders: Iterable[Path]) -> dict[Key, Group]:
    """Read records and choose a point of the grid for each cell.

    Args:
        folders: With sweeps below them.

    Returns:
        By recipe, model and method: of the points with the most seeds the one with the
        highest median, as the paper chooses: on the validation set that it reports.
    """
    points: dict[Key, dict[str, list[dict[str, Any]]]] = {}
    for folder in folders:
        for record in read_records(folder):
            key = (record["recipe"], record["model"], record["method"])
            point = str(sorted(record["grid"].items()))
            points.setdefault(key, {}).setdefault(point, []).append(record)
    for key, found in points.items():
        _require_comparable(key, [record for records in found.values() for record in records])
    groups = {
        key: [Group(records[0]["grid"], _one_per_seed(key, records)) for records in found.values()]
        for key, found in points.items()
    }
    return {
        key: max(found, key=lambda group: (len(group.records), median(group.scores)))
        for key, found in groups.items()
    }


def _require_comparable(key: Key, records: Sequence[Mapping[str, Any]]) -> None:
    for what in ("data_sha256", "signature", "n", "encoder_sha256"):
        values = {str(record[what]) for record in records}
        if len(values) > 1:
            raise UserError(
                f"{' '.join(key)}: the records differ in {what}, so they cannot share a cell; "
                "name one of the sweeps with --sweeps"
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
    values = ", ".join(f"{name} {value}" for name, value in group.grid.items())
    seeds = ",".join(str(record["seed"]) for record in group.records)
    return f"{values + ', ' if values else ''}seeds {seeds}"
