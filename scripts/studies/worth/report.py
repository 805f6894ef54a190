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
from scripts.studies.worth.plan import CONDITIONS, PAIRS, RISK_RADIUS, SYSTEMS, Condition, System

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
class Joined:
    """The records of one condition, which may be of several machines.

    Args:
        condition: On what the runs were made.
        places: On which machines, in words.
        runs: Of all records; one that two of them have is the first's. Its ``time`` is its seconds
            over those of plain training in the same record; none if either is unknown, since a run
            was broken off or the record has no plain training.
    """

    condition: Condition
    places: str
    runs: Sequence[Run]


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
        train: The accuracy on the training labels, flipped ones included, in the last epoch; none
            of a regression.
        risk: Adversarial risk (Eq. 2) of the last epoch's model.
        time: Processor time of training over that of plain training, the mean over the runs of
            all radii and draws of which it is known; none if it is of none.
    """

    radii: tuple[str, str]
    scores: Sequence[float]
    best: Sequence[float]
    train: Sequence[float]
    risk: Sequence[float]
    time: float | None


def joined(records: Sequence[Record]) -> list[Joined]:
    """Join the records of each condition."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["settings"]["condition"], []).append(record)
    return [_joined(CONDITIONS[name], same) for name, same in found.items()]


def _joined(condition: Condition, records: Sequence[Record]) -> Joined:
    runs: dict[Any, Run] = {}
    for record in records:
        known = [run for run in record["runs"] if run["seconds"] is not None]
        plain = [run["seconds"] for run in known if run["method"] == "none"]
        for run in record["runs"]:
            seconds = run["seconds"]
            time = seconds / statistics.fmean(plain) if plain and seconds is not None else None
            key = run["method"], tuple(sorted(run["grid"].items())), run["seed"]
            runs.setdefault(key, {**run, "time": time})
    places = (f"{r['hardware']['processor']}, torch {r['versions']['torch']}" for r in records)
    return Joined(condition, "; ".join(dict.fromkeys(places)), list(runs.values()))


def runs_of(joint: Joined, name: str) -> Runs:
    """Return the runs of a system: of the draws that have run it at each of its radii."""
    system = joint.condition.system(name)
    found: dict[str, dict[int, Run]] = {}
    for run in joint.runs:
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

    times = [run["time"] for each in runs.values() for run in each if run["time"] is not None]
    return Result(
        radii,
        scores=mean(lambda run, half: run["halves"][half]),
        best=mean(lambda run, _: max(run["valid"])),
        train=mean(lambda run, _: run["train"]) if runs[radii[0]][0]["train"] is not None else (),
        risk=mean(lambda run, _: run["risk"]),
        time=statistics.fmean(times) if times else None,
    )


def pair(joint: Joined, name: str, other: str) -> tuple[Result, Result] | None:
    """Return the results of two systems on the draws that both have run, if there are any."""
    both = runs_of(joint, name), runs_of(joint, other)
    seeds = set.intersection(
        *({run["seed"] for run in next(iter(runs.values()), ())} for runs in both)
    )
    if not seeds:
        return None
    ours, theirs = (
        result({radius: [r for r in found if r["seed"] in seeds] for radius, found in runs.items()})
        for runs in both
    )
    return ours, theirs


def tables(records: Sequence[Record]) -> str:
    """Lay records out: the differences that answer the questions, then a table a condition."""
    conditions = joined(records)
    return "\n\n".join([_differences(conditions), *map(_table, conditions)])


def _differences(conditions: Sequence[Joined]) -> str:
    head = ("score", *(title(joint) for joint in conditions))
    found = {names: [pair(joint, *names) for joint in conditions] for names in PAIRS}
    rows = [
        [" − ".join(map(label, names)), *("" if one is None else _difference(*one) for one in both)]
        for names, both in found.items()
        if any(both)
    ]
    rule = ("---", *("--:" for _ in conditions))
    return "\n".join(markdown_lines(head, rule, rows))


def _difference(ours: Result, theirs: Result) -> str:
    differences = _paired(ours, theirs)
    p = sign_flip_test(differences)
    return f"{statistics.fmean(differences):+.1f} (p {p:.2g}, n {len(differences)})"


def _paired(ours: Result, theirs: Result) -> list[float]:
    return [a - b for a, b in zip(ours.scores, theirs.scores, strict=True)]


def _table(joint: Joined) -> str:
    head = (
        *("", "ρ", "score", "− `none`", "p", "best epoch", "training labels"),
        *("adversarial risk", "time × none", "n"),
    )
    rows = []
    for name in SYSTEMS:
        both = pair(joint, name, "none")
        if both is None:
            continue
        ours, plain = both
        differences = _paired(ours, plain)
        against = [f"{statistics.fmean(differences):+.1f}", f"{sign_flip_test(differences):.3f}"]
        rows.append(
            [
                label(name),
                ", ".join(sorted(set(ours.radii), key=float)) if ours.radii[0] else "",
                spread(ours.scores),
                *(against if name != "none" else ["", ""]),
                f"{statistics.fmean(ours.best):.1f}",
                f"{statistics.fmean(ours.train):.1f}" if ours.train else "",
                f"{statistics.fmean(ours.risk):.3f}",
                "" if ours.time is None else f"{ours.time:.2f}",
                str(len(ours.scores)),
            ]
        )
    rule = ("---", *("--:" for _ in head[1:]))
    return "\n".join([caption(joint), "", *markdown_lines(head, rule, rows)])


def title(joint: Joined) -> str:
    """Name the data in a few words."""
    condition = joint.condition
    flipped = f", {condition.flipped:.0%} wrong" if condition.flipped else ""
    return f"{_task(condition)}, {condition.sentences:,}{flipped}"


def _task(condition: Condition) -> str:
    return GLUE[condition.recipe.removeprefix("glue/")].name


def caption(joint: Joined) -> str:
    """Say on what the runs were made."""
    condition = joint.condition
    flipped = f", {condition.flipped:.0%} of them with the wrong label" if condition.flipped else ""
    least, most = condition.words
    return (
        f"**{condition.sentences:,} training sentences of {_task(condition)}{flipped}**: "
        f"{least} to {most} words, {condition.epochs} epochs, MiniLM-L6; "
        f"{joint.runs[0]['metric']}, risk at {RISK_RADIUS}. {joint.places}."
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
    """Draw the score at each radius, a panel of the same span for each condition."""
    check_figure(out)
    conditions = joined(records)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq lets all messages through
    columns = min(len(conditions), 3)
    lines = -(-len(conditions) // columns)
    figure = new_figure(3.6 * columns + 2.4, 3.6 * lines)
    panels = figure.subplots(lines, columns, squeeze=False)
    for panel in panels.flat[len(conditions) :]:
        panel.set_axis_off()
    for panel, joint in zip(panels.flat, conditions, strict=False):
        found = {name: runs_of(joint, name) for name in COLOURS}
        for name, runs in found.items():
            _line(panel, runs, name)
        panel.set_xscale("log")
        panel.set_title(title(joint), loc="left", fontsize=10)
        panel.set_xlabel("ρ")
        ticks = sorted({radius for runs in found.values() for radius in runs if radius}, key=float)
        panel.set_xticks(list(map(float, ticks)), ticks)
        panel.minorticks_off()
        panel.grid(color="#e5e5e5", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    limits = {panel: panel.get_ylim() for panel in panels.flat[: len(conditions)]}
    half = max(top - bottom for bottom, top in limits.values()) / 2
    for panel, (bottom, top) in limits.items():  # a point is as high in every panel
        panel.set_ylim((bottom + top) / 2 - half, (bottom + top) / 2 + half)
    for panel in panels[:, 0]:
        panel.set_ylabel("score after the last epoch")
    shown: dict[str, Any] = {}
    for panel in panels.flat:
        shown.update(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(
        shown.values(), shown.keys(), loc="outside right upper", frameon=False, fontsize=9
    )
    figure.savefig(out, dpi=120)


def _line(panel: Any, runs: Runs, name: str) -> None:
    colour = COLOURS[name]
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
