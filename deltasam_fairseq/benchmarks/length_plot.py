"""The length benchmark's record as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltasam_fairseq.figures import check_figure, new_figure

_COLOURS = {"thin": "#1b4f72", "formed": "#d95f02", "plan": "#117a65"}
_LABELS = {"thin": "thin products", "formed": "formed matrices", "plan": "the engine's choice"}


def draw_lengths(record: Mapping[str, Any], out: Path) -> None:
    """Draw each strategy's ratio to SAM against the length of the sentences.

    Args:
        record: From :func:`~deltasam_fairseq.benchmarks.length_record.length_record_of`.
        out: PNG, PDF or SVG file to write; see :func:`~deltasam_fairseq.figures.check_figure`.
    """
    check_figure(out)
    settings = record["settings"]
    figure = new_figure(7, 4)
    axis = figure.subplots()
    tokens = [one["tokens"] for one in record["lengths"]]
    for name, colour in _COLOURS.items():
        spreads = [one["clocks"][settings["clock"]]["ratios"][name] for one in record["lengths"]]
        medians, low, high = ([s[key] for s in spreads] for key in ("median", "q1", "q3"))
        style = "--" if name == "plan" else "-"
        axis.plot(tokens, medians, style, marker="o", markersize=4, color=colour,
                  label=_LABELS[name])  # fmt: skip
        axis.fill_between(tokens, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.axhline(1, color="#444444", linewidth=0.8)
    axis.set_xscale("log", base=2)
    axis.set_xticks(tokens, [str(t) for t in tokens])
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_title(
        f"Batched per-instance step over SAM step, width {settings['width']}",
        loc="left",
        fontsize=11,
    )
    axis.set_xlabel(f"tokens of a sentence, {settings['batch_tokens']} tokens in a batch")
    axis.set_ylabel(f"ratio of {settings['clock']} times")
    axis.grid(color="#e5e5e5", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    figure.savefig(out, dpi=120)
