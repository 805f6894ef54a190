"""The learning curve of a run: loss, sharpness and weights per update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltasam_fairseq.figures import check_figure, new_figure
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.train_log import column, read_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Line:
    """One curve of a panel.

    Args:
        meter: Name of fairseq's meter.
        label: What it is, for the legend.
        colour: Colour of the line.
    """

    meter: str
    label: str
    colour: str


@dataclass(frozen=True)
class Panel:
    """One panel of the figure.

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
    absent: str
    from_zero: bool = True


_NOT_PERTURBED = "not logged: this method does not perturb the weights"

PANELS = (
    Panel(
        "Loss",
        "bits per token",
        (
            Line("sam_loss", "at the perturbed weights, l(w + ε)", "#d95f02"),
            Line("loss", "at the weights, l(w)", "#1b4f72"),
        ),
        "not logged",
        from_zero=False,
    ),
    Panel(
        "Sharpness, l(w + ε) − l(w)",
        "bits per token",
        (Line("sharpness", "sharpness", "#d95f02"),),
        _NOT_PERTURBED,
    ),
    Panel(
        "Effective number of sentences per update, (Σg)² / Σg²",
        "sentences",
        (
            Line("bsz", "sentences in the update", "#8c8c8c"),
            Line("sam_ess", "effective", "#117a65"),
        ),
        _NOT_PERTURBED,
    ),
)


def draw_curve(run: RunFolder, out: Path) -> None:
    """Draw the learning curve of a run.

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
        axes[0].plot(*validation, "o", color="#117a65", label="validation", markersize=5)
        axes[0].legend(frameon=False, fontsize=9)
    axes[-1].set_xlabel("updates")
    axes[-1].set_xlim(left=0)
    figure.align_ylabels()
    figure.savefig(out, dpi=120)


def _draw_panel(axis: Axes, panel: Panel, curve: Sequence[dict[str, float]]) -> None:
    axis.set_title(panel.title, loc="left", fontsize=11)
    axis.set_ylabel(panel.unit)
    axis.grid(color="#e5e5e5", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
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
