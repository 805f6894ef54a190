"""Choosing radii and comparing systems: pure functions of the study's records."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.glue import GLUE
from deltasam_fairseq.evaluation.resampling import sign_flip_test
from deltasam_fairseq.figures import check_figure, new_figure
from deltasam_fairseq.markdown import markdown_lines
from scripts.studies.shared import Record
from scripts.studies.worth.plan import CONDITIONS, RISK_RADIUS, SYSTEMS, System

Run = Mapping[str, Any]
#: By radius, the runs of one system, those of one draw at the same place.
Runs = Mapping[str, Sequence[Run]]

COLOURS = {
    "none": "#888888",
    "sam": "#222222",
    "per_instance": "#c0392b",
    "tail": "#e69f8f",
    "delta_sam": "#2e6fb7",
    "random": "#9cc2e5",
    "groups": "#3a8f5c",
}


@dataclass(frozen=True)
class Result:
    """What a system came to.

    Each half of the validation sentences is scored at the radius with which the other half, in the
    mean over draws, scored best; a score is the mean of the two. So nothing is scored by what
    chose it.

    Args:
        radii: The two that were chosen, the first by the first half; none have none.
        scores: The metric after the last epoch, by draw, in percent.
        best: The metric on all validation sentences after the epoch that is best on them.
        train: The metric on the training labels, flipped ones included, in the last epoch.
        risk: Adversarial risk (Eq. 2) of the last epoch's model.
        seconds: Processor seconds of training, the mean over all radii and draws; those of a run
            that was broken off are not known.
    """

    radii: tuple[str, str]
    scores: Sequence[float]
    best: Sequence[float]
    train: Sequence[float]
    risk: Sequence[float]
    seconds: float


def runs_of(record: Record, name: str) -> Runs:
    """Return the runs of a system: of the draws that have run it at each of its radii."""
    system = SYSTEMS[name]
    found: dict[str, dict[int, Run]] = {}
    for run in record["runs"]:
        radius = run["grid"].get("rho", "")
        if _is_of(run, system) and radius in (system.radii or [""]):
            found.setdefault(radius, {})[run["seed"]] = run
    wanted = system.radii or [""]
    draws = set.intersection(*(set(found.get(radius, {})) for radius in wanted))
    return {radius: [found[radius][seed] for seed in sorted(draws)] for radius in wanted if draws}


def _is_of(run: Run, system: System) -> bool:
    further = dict(entry.split("=") for entry in system.grid)
    found = {name: value for name, value in run["grid"].items() if name != "rho"}
    return bool(run["method"] == system.method and found == further)


def result(runs: Runs) -> Result:
    """Choose a radius on each half, and score the other half with it."""

    def chosen_on(half: int) -> str:
        return max(
            runs, key=lambda radius: statistics.fmean(r["halves"][half] for r in runs[radius])
        )

    radii = (chosen_on(0), chosen_on(1))

    def mean(value: Callable[[Run, int], float]) -> list[float]:
        pairs = zip(runs[radii[0]], runs[radii[1]], strict=True)
        return [(value(first, 1) + value(second, 0)) / 2 for first, second in pairs]

    return Result(
        radii,
        scores=mean(lambda run, half: run["halves"][half]),
        best=mean(lambda run, _: max(run["valid"])),
        train=mean(lambda run, _: run["train"]),
        risk=mean(lambda run, _: run["risk"]),
        seconds=statistics.fmean(
            run["seconds"] for each in runs.values() for run in each if run["seconds"] is not None
        ),
    )


def compare(record: Record) -> dict[str, tuple[Result, Result]]:
    """Return the result of every system that was run, and that of ``none`` on the same draws."""
    found: dict[str, tuple[Result, Result]] = {}
    plain = runs_of(record, "none")
    for name in SYSTEMS:
        runs = runs_of(record, name)
        draws = {run["seed"] for run in next(iter(runs.values()), ())}
        shared = [run for run in plain.get("", ()) if run["seed"] in draws]
        if shared:
            seeds = {run["seed"] for run in shared}
            ours = {
                radius: [r for r in all_ if r["seed"] in seeds] for radius, all_ in runs.items()
            }
            found[name] = result(ours), result({"": shared})
    return found


def tables(records: Sequence[Record]) -> str:
    """Lay records out, one table each."""
    return "\n\n".join(_table(record) for record in records)


def _table(record: Record) -> str:
    head = (
        *("", "ρ", "score", "− `none`", "p", "best epoch", "training labels"),
        *("adversarial risk", "time × none", "n"),
    )
    rows = []
    for name, (ours, plain) in compare(record).items():
        differences = [a - b for a, b in zip(ours.scores, plain.scores, strict=True)]
        against = [f"{statistics.fmean(differences):+.1f}", f"{sign_flip_test(differences):.3f}"]
        rows.append(
            [
                label(name),
                ", ".join(sorted(set(ours.radii), key=float)) if ours.radii[0] else "",
                spread(ours.scores),
                *(against if name != "none" else ["", ""]),
                *(f"{statistics.fmean(values):.1f}" for values in (ours.best, ours.train)),
                f"{statistics.fmean(ours.risk):.3f}",
                f"{ours.seconds / plain.seconds:.2f}",
                str(len(ours.scores)),
            ]
        )
    rule = ("---", *("--:" for _ in head[1:]))
    return "\n".join([caption(record), "", *markdown_lines(head, rule, rows)])


def caption(record: Record) -> str:
    """Say on what the runs of a record were made."""
    condition = CONDITIONS[record["settings"]["condition"]]
    task = GLUE[condition.recipe.removeprefix("glue/")].name
    flipped = f", {condition.flipped:.0%} of them with the wrong label" if condition.flipped else ""
    least, most = condition.words
    return (
        f"**{condition.sentences:,} training sentences of {task}{flipped}**: {least} to {most} "
        f"words, {condition.epochs} epochs, MiniLM-L6; {record['runs'][0]['metric']}, risk at "
        f"{RISK_RADIUS}. {record['hardware']['processor']}, torch {record['versions']['torch']}."
    )


def label(name: str) -> str:
    """Return how a system is called, as Markdown.

    Example:
        >>> label("tail")
        '`per_instance --sam-tail 0.25`'
    """
    system = SYSTEMS[name]
    further = (f"--{flag} {value}" for flag, value in (one.split("=") for one in system.grid))
    return f"`{' '.join([system.method, *further])}`"


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation, the latter of two values or more.

    Example:
        >>> spread([1.0, 3.0])
        '2.0 ± 1.4'
    """
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


def draw(records: Sequence[Record], out: Path) -> None:
    """Draw the score at each radius, a panel for each record."""
    check_figure(out)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq lets all messages through
    figure = new_figure(3.6 * len(records) + 2.4, 3.6)
    panels = figure.subplots(1, len(records), squeeze=False)[0]
    for panel, record in zip(panels, records, strict=True):
        for name, colour in COLOURS.items():
            _line(panel, runs_of(record, name), name, colour)
        panel.set_xscale("log")
        condition = CONDITIONS[record["settings"]["condition"]]
        panel.set_title(
            f"{condition.sentences:,} sentences, {condition.flipped:.0%} wrong labels",
            loc="left",
            fontsize=10,
        )
        panel.set_xlabel("ρ")
        ticks = [0.005, 0.01, 0.02, 0.03, 0.05]
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.grid(color="#e5e5e5", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("score after the last epoch")
    shown: dict[str, Any] = {}
    for panel in panels:
        shown.update(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(
        shown.values(), shown.keys(), loc="outside right upper", frameon=False, fontsize=9
    )
    figure.savefig(out, dpi=120)


def _line(panel: Any, runs: Runs, name: str, colour: str) -> None:
    text = label(name).replace("`", "")
    scores = {
        radius: [statistics.fmean(run["halves"]) for run in found] for radius, found in runs.items()
    }
    if "" in scores:
        panel.axhline(statistics.fmean(scores[""]), color=colour, linestyle="--", label=text)
    elif scores:
        panel.errorbar(
            [float(radius) for radius in scores],
            [statistics.fmean(values) for values in scores.values()],
            [statistics.stdev(values) if len(values) > 1 else 0 for values in scores.values()],
            fmt="-o",
            color=colour,
            label=text,
            markersize=5,
            elinewidth=0.7,
        )
