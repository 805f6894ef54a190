"""Scores of several seeds as one line: mean, median, max, spread, and always their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean, median, stdev
from typing import Any

from deltasam_fairseq.errors import UserError


@dataclass(frozen=True)
class Aggregate:
    """A score over seeds. Papers report different ones of these; all belong together.

    Args:
        mean: Arithmetic mean.
        median: Median.
        max: The best, for a score of which more is better.
        min: The worst.
        std: Sample standard deviation (divided by n - 1), none for one seed.
        n: Number of seeds.
    """

    mean: float
    median: float
    max: float
    min: float
    std: float | None
    n: int

    def __str__(self) -> str:
        """Return mean, spread and number, as for a table."""
        spread = "" if self.std is None else f" ± {self.std:.2f}"
        return f"{self.mean:.2f}{spread} (median {self.median:.2f}, max {self.max:.2f}, n={self.n})"


def aggregate(values: Sequence[float]) -> Aggregate:
    """Summarize a score over seeds.

    Args:
        values: One finite score per seed.

    Returns:
        The summary.

    Raises:
        UserError: If there is no value, or one that is not finite.

    Example:
        >>> print(aggregate([70.0, 71.0, 75.0]))
        72.00 ± 2.65 (median 71.00, max 75.00, n=3)
    """
    if not values:
        raise UserError("there is nothing to aggregate: no scores")
    for number, value in enumerate(values, start=1):
        if not isfinite(value):
            raise UserError(f"score {number} is {value}: a run without a score has no place here")
    return Aggregate(
        mean=fmean(values),
        median=median(values),
        max=max(values),
        min=min(values),
        std=stdev(values) if len(values) > 1 else None,
        n=len(values),
    )


def aggregate_reports(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Aggregate]:
    """Summarize reports of ``deltasam score … --json``, number by number.

    Args:
        reports: One per seed, by the name of its file. They must have been scored in the same
            way on the same number of examples: signatures and all counts ``n`` must agree.

    Returns:
        By the path of a number in the reports, such as ``rouge1.fmeasure``.

    Raises:
        UserError: If there is none, or two do not agree; the message says in what.

    Example:
        >>> reports = {"a": {"f1": 80.0, "n": 9}, "b": {"f1": 84.0, "n": 9}}
        >>> aggregate_reports(reports)["f1"].mean
        82.0
    """
    flat = {name: dict(_leaves(report)) for name, report in reports.items()}
    if not flat:
        raise UserError("there is nothing to aggregate: no reports")
    first_name, first = next(iter(flat.items()))
    for name, report in flat.items():
        if report.keys() != first.keys():
            only = sorted(report.keys() ^ first.keys())
            raise UserError(
                f"{first_name} and {name} hold different scores: {', '.join(only)} in one of them"
            )
        for path, value in report.items():
            if _is_fixed(path, value) and value != first[path]:
                raise UserError(
                    f"{first_name} and {name} are not comparable: {path} is {first[path]!r} in one "
                    f"and {value!r} in the other"
                )
    numbers = [path for path, value in first.items() if not _is_fixed(path, value)]
    if not numbers:
        raise UserError(f"{first_name}: no scores in it")
    return {path: aggregate([report[path] for report in flat.values()]) for path in numbers}


def _is_fixed(path: str, value: Any) -> bool:
    return (
        path.rsplit(".", maxsplit=1)[-1] == "n"
        or isinstance(value, bool)
        or not isinstance(value, int | float)
    )


def _leaves(report: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(report, Mapping):
        children = report.items()
    elif isinstance(report, list):
        children = {str(number): child for number, child in enumerate(report)}.items()
    else:
        return [(path, report)]
    return [
        leaf
        for name, child in children
        for leaf in _leaves(child, f"{path}.{name}" if path else str(name))
    ]
