"""Every point of the searches, of which the paper's tables show one per cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from deltasam_fairseq.analysis.records import Group, in_order, read_points, select
from deltasam_fairseq.analysis.table import NONE, Table, mean_and_std
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.methods import JOIN
from deltasam_fairseq.recipes.sweep_plan import SHORT, means_something

_HEADER = (
    *("recipe", "model", "method", "point", "seeds"),
    *("metric", "median", "best", "mean ± std", "adversarial risk"),
)
_NOTE = (
    "Metric on the validation set, in percent; risk of Eq. 2, mean ± std. Tables 1 and 4 show, of "
    "the points with most seeds, the one with the highest median. Points with different seeds "
    "cannot be compared with each other."
)


def grid_table(
    folders: Sequence[Path], *, recipe: str | None = None, model: str | None = None
) -> Table:
    """Return every point of every search, or of those with one recipe or model.

    Raises:
        UserError: If there is no such record.
    """
    found = select(read_points(folders), recipe, model)
    if not found:
        raise UserError(
            f"no finished run below {', '.join(map(str, folders))}; deltasam sweep makes them"
        )
    rows: list[tuple[str, ...]] = [
        (
            *(*key, _point(group)),
            ",".join(map(str, group.seeds)),
            group.metric,
            f"{median(group.scores):.2f}",
            f"{max(group.scores):.2f}",
            mean_and_std(group.scores),
            mean_and_std(group.risks, 3),
        )
        for key in in_order(found)
        for group in found[key]
    ]
    return Table(_HEADER, rows, _NOTE)


def _point(group: Group) -> str:
    """Write what was searched, and what has a short name wherever the method uses it."""
    parts, flags = group.records[0]["method"].split(JOIN), group.records[0]["flags"]
    usual = {
        name: flags[flag]
        for name, (flag, _) in SHORT.items()
        if flag in flags and means_something(name, parts)
    }
    values = {**usual, **group.grid}
    return ", ".join(f"{name} {value}" for name, value in values.items()) or NONE
