"""What each method costs and brings: metric against seconds of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from deltasam_fairseq.analysis.cost_table import is_timed
from deltasam_fairseq.analysis.sweep_cells import Group, Key, collect
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.figures import check_figure, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "none": "#8c8c8c",
    "sam": "#d95f02",
    "delta_sam": "#1b4f72",
    "per_instance": "#117a65",
    "random": "#a64d9c",
}


def draw_costs(folders: Sequence[Path], out: Path) -> None:
    """Draw a panel per recipe and model, a point per run and the mean of each method.

    Runs whose time is not known are left out: those that were broken off, as of Table 6.

    Args:
        folders: With sweeps below them.
        out: PNG, PDF or SVG file to write; see :func:`~deltasam_fairseq.figures.check_figure`.
    """
    check_figure(out)
    groups = _timed_groups(folders)
    panels = sorted({(recipe, model) for recipe, model, _ in groups})
    figure = new_figure(7, 3.6 * len(panels))
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        for method, colour in _COLOURS.items():
            key: Key = (*panel, method)
            if key in groups:
                _draw(axis, method, groups[key], colour)
        metric = next(iter(groups[_first(groups, panel)].records[0]["metrics"]))
        axis.set_title(f"{panel[0]}, {panel[1]}", loc="left", fontsize=11)
        axis.set_ylabel(f"{metric}, percent")
        axis.set_xlabel("seconds of training")
        axis.set_xlim(left=0)
        axis.grid(color="#e5e5e5", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9)
    figure.savefig(out, dpi=120)


def _timed_groups(folders: Sequence[Path]) -> dict[Key, Group]:
    groups = collect(folders)
    timed = {key: [r for r in group.records if is_timed(r)] for key, group in groups.items()}
    found = {key: replace(groups[key], records=rs) for key, rs in timed.items() if rs}
    if not found:
        names = ", ".join(map(str, folders))
        known = " has a known time of training: all were broken off" if groups else ""
        raise UserError(f"no finished run below {names}{known}; make some with: deltasam sweep")
    return found


def _first(groups: dict[Key, Group], panel: tuple[str, str]) -> Key:
    return next(key for key in groups if key[:2] == panel)


def _draw(axis: Axes, method: str, group: Group, colour: str) -> None:
    seconds = [record["seconds"]["train"] for record in group.records]
    axis.plot(seconds, group.scores, "o", color=colour, alpha=0.45, markersize=5)
    label = f"{method}, n = {len(group.records)}"
    axis.plot([fmean(seconds)], [fmean(group.scores)], "D", color=colour, markersize=8, label=label)
