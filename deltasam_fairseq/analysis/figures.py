"""Figures: the learning curve of a run, and what each method costs and brings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from deltasam_fairseq.analysis.records import Group, collect, is_timed
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.figures import check_figure, new_figure
from deltasam_fairseq.recipes.methods import in_usual_order
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.train_log import column, read_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY, _ORANGE, _BLUE, _GREEN, _PURPLE = "#8c8c8c", "#d95f02", "#1b4f72", "#117a65", "#a64d9c"
_COLOURS = {
    "none": _GREY,
    "sam": _ORANGE,
    "delta_sam": _BLUE,
    "per_instance": _GREEN,
    "random": _PURPLE,
}
#: Of the other methods, in their usual order.
_FURTHER = ("#c0392b", "#b7950b", "#2e86c1", "#6e2c00", "#52be80", "#7d6608")


@dataclass(frozen=True)
class Line:
    """One curve of a panel: a meter of fairseq, what it is, and its colour."""

    meter: str
    label: str
    colour: str


@dataclass(frozen=True)
class Panel:
    """One panel of the learning curve.

    Args:
        title: What it shows.
        unit: Label of its axis.
        lines: Its curves.
        absent: What it says if the last of them, which it is about, was not logged.
        from_zero: Whether its axis reaches down to zero.
    """

    title: str
    unit: str
    lines: tuple[Line, ...]
    absent: str = "not logged: this method does not perturb the weights"
    from_zero: bool = True


PANELS = (
    Panel(
        "Loss",
        "bits per token",
        (
            Line("sam_loss", "at the perturbed weights, l(w + ε)", _ORANGE),
            Line("loss", "at the weights, l(w)", _BLUE),
        ),
        absent="not logged",
        from_zero=False,
    ),
    Panel(
        "Sharpness, l(w + ε) − l(w)", "bits per token", (Line("sharpness", "sharpness", _ORANGE),)
    ),
    Panel(
        "Effective number of sentences per update, (Σg)² / Σg²",
        "sentences",
        (Line("bsz", "sentences in the update", _GREY), Line("sam_ess", "effective", _GREEN)),
    ),
)


def draw_curve(run: RunFolder, out: Path) -> None:
    """Draw loss, sharpness and effective number of sentences per update of a run.

    Args:
        run: The run; its ``train.log`` is read.
        out: PNG, PDF or SVG file to write; see :func:`~deltasam_fairseq.figures.check_figure`.
    """
    curve = read_curve(run.log)
    validation = column(read_curve(run.log, "valid"), "loss")
    record = run.record()
    check_figure(out)
    figure = new_figure(8, 8.5)
    figure.suptitle(
        f"{record['recipe']}, method {record['method']}, seed {record['seed']}", fontsize=12
    )
    axes = figure.subplots(len(PANELS), 1, sharex=True)
    for axis, panel in zip(axes, PANELS, strict=True):
        _draw_panel(axis, panel, curve)
    if validation[0]:
        axes[0].plot(*validation, "o", color=_GREEN, label="validation", markersize=5)
        axes[0].legend(frameon=False, fontsize=9)
    axes[-1].set_xlabel("updates")
    axes[-1].set_xlim(left=0)
    figure.align_ylabels()
    figure.savefig(out, dpi=120)


def _draw_panel(axis: Axes, panel: Panel, curve: Sequence[dict[str, float]]) -> None:
    _prepare(axis, panel.title, panel.unit)
    drawn = [(line, *column(curve, line.meter)) for line in panel.lines]
    if not drawn[-1][1]:
        axis.text(0.5, 0.5, panel.absent, transform=axis.transAxes, ha="center", color="#777777")
        axis.set_yticks([])
        return
    for line, updates, values in drawn:
        if updates:
            axis.plot(updates, values, color=line.colour, label=line.label, linewidth=1.6)
    if panel.from_zero:
        axis.axhline(0, color="#444444", linewidth=0.8)
        axis.margins(y=0.15)
    if len(drawn) > 1:
        axis.legend(frameon=False, fontsize=9)


def draw_costs(folders: Sequence[Path], out: Path) -> None:
    """Draw metric against seconds of training, a panel per recipe and model.

    Each run is a point, and each method's mean another. Runs that were broken off are left out,
    as in Table 6: their time is not known.

    Args:
        folders: With sweeps below them.
        out: PNG, PDF or SVG file to write; see :func:`~deltasam_fairseq.figures.check_figure`.
    """
    check_figure(out)
    panels = _timed_panels(folders)
    figure = new_figure(7, 3.6 * len(panels))
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axis, (title, methods) in zip(axes, sorted(panels.items()), strict=True):
        metric = next(iter(methods.values())).metric
        _prepare(axis, ", ".join(title), f"{metric}, percent")
        others = in_usual_order(methods.keys() - _COLOURS.keys())
        colours = {**_COLOURS, **dict(zip(others, itertools.cycle(_FURTHER), strict=False))}
        for method in in_usual_order(methods):
            _draw_method(axis, method, methods[method], colours[method])
        axis.set_xlabel("seconds of training")
        axis.set_xlim(left=0)
        axis.legend(frameon=False, fontsize=9)
    figure.savefig(out, dpi=120)


def _timed_panels(folders: Sequence[Path]) -> dict[tuple[str, str], dict[str, Group]]:
    """Read the runs whose time is known: by recipe and model, by method."""
    groups = collect(folders)
    panels: dict[tuple[str, str], dict[str, Group]] = {}
    for (recipe, model, method), group in groups.items():
        if records := [record for record in group.records if is_timed(record)]:
            panels.setdefault((recipe, model), {})[method] = replace(group, records=records)
    if not panels:
        names = ", ".join(map(str, folders))
        known = " has a known time of training: all were broken off" if groups else ""
        raise UserError(f"no finished run below {names}{known}; make some with: deltasam sweep")
    return panels


def _draw_method(axis: Axes, method: str, group: Group, colour: str) -> None:
    seconds = [record["seconds"]["train"] for record in group.records]
    axis.plot(seconds, group.scores, "o", color=colour, alpha=0.45, markersize=5)
    label = f"{method}, n = {len(group.records)}"
    axis.plot([fmean(seconds)], [fmean(group.scores)], "D", color=colour, markersize=8, label=label)


def _prepare(axis: Axes, title: str, unit: str) -> None:
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_ylabel(unit)
    axis.grid(color="#e5e5e5", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
