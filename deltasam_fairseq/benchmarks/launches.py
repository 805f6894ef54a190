"""What one update asks of a GPU beyond its passes, counted without one.

Every variant runs an update of fairseq's own trainer; the passes are counted one by one, on the
trainer of ``none``. An update's counts less those of ``none``'s update and of the passes that it
runs more are what the variant adds around its passes.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairseq.trainer import Trainer

from deltasam_fairseq.benchmarks.counting import counted
from deltasam_fairseq.benchmarks.instruments import no_collection, timed
from deltasam_fairseq.benchmarks.plan import LaunchesPlan, settings_of
from deltasam_fairseq.benchmarks.record import check, rounded_spread
from deltasam_fairseq.benchmarks.table import verdict
from deltasam_fairseq.benchmarks.trainers import (
    batch_of,
    build_trainer,
    each_pass,
    flags_of,
    quiet,
    size_of,
    update,
    write,
)
from deltasam_fairseq.benchmarks.variants import VARIANTS
from deltasam_fairseq.benchmarks.workloads import WORKLOADS
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.core.vectors import unique
from deltasam_fairseq.fairseq_plugin.sharpness.engine_passes import own_projections
from deltasam_fairseq.per_instance import Engine
from deltasam_fairseq.per_instance.first_pass import Recording
from deltasam_fairseq.per_instance.perturbed_pass import Perturbing
from deltasam_fairseq.per_instance.row_selection import Tables

SCHEMA = 1
WHATS = ("operations", "launches", "allocations", "synchronizations")
# Beyond the passes: operations as a share of theirs, and synchronizations.
LIMITS = {"sam": (0.03, 2), "delta_sam": (0.03, 2), "per_instance": (0.5, None)}
_CPU = torch.device("cpu")
_LEGEND = """\
operations: what was dispatched in one update; an operation on a list of tensors is one.
launches: those that compute, all but views. allocations: tensors with memory of their own.
waits: synchronizations, that is how often the program waited for a value.
beyond: what is more than in an update of none and in the method's other passes; in per cent of
what its passes take. watching: what seeing every use of a parameter takes in both passes of the
batched engine, in plain forward passes (processor time)."""


def count(model: str, plan: LaunchesPlan, say: Callable[[str], None]) -> dict[str, Any]:
    """Return what an update of every variant asks for on one model, for a record.

    Args:
        model: Its name.
        plan: What to run.
        say: Prints a line of progress.

    State:
        Sets the number of threads of this process.
    """
    torch.set_num_threads(1)
    workload = WORKLOADS[model][plan.size]
    updates = {}
    with quiet(), tempfile.TemporaryDirectory() as folder:
        write(Path(folder), workload, plan.seed)
        for method in plan.methods:
            flags = flags_of(workload, VARIANTS[method].flags, plan.seed, _CPU)
            trainer = build_trainer(Path(folder), flags)
            batch = batch_of(trainer)
            for _ in range(plan.warm_up):
                update(trainer, [batch])
            updates[method] = _counts(partial(update, trainer, [batch]))
            if method == "none":
                tensors, size = len(unique(trainer.optimizer.params)), size_of([batch])
                passes = each_pass(trainer, batch, _counts)
                watch = _watching(trainer, batch, plan.repeats) if plan.repeats else {}
            say(f"{model}: {method}: {updates[method]['operations']} operations")
    needed = {method: _needed(method, passes) for method in updates}
    beyond = {
        method: {
            what: (counts[what] - needed[method][what])
            - (updates["none"][what] - needed["none"][what])
            for what in WHATS
        }
        for method, counts in updates.items()
    }
    return {
        "model": model,
        "flags": " ".join(flags_of(workload, "METHOD", plan.seed, _CPU)),
        "tensors": tensors,
        "batch": size,
        "passes": passes,
        "updates": updates,
        "beyond": beyond,
        "share_beyond": {
            method: {what: round(more[what] / needed[method][what], 5) for what in WHATS[:3]}
            for method, more in beyond.items()
        },
        "watching": _added_by_watching(watch) if watch else None,
        "watch_seconds": {name: rounded_spread(times) for name, times in watch.items()},
    }


def _counts(work: Callable[[], object]) -> dict[str, Any]:
    counts = counted(work)
    return {**asdict(counts), "places": dict(counts.places.most_common())}


def _needed(method: str, passes: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Add up the counts of a variant's passes."""
    numbers = VARIANTS[method].passes or {}
    return {what: sum(n * passes[name][what] for name, n in numbers.items()) for what in WHATS}


def _watching(trainer: Trainer, batch: Any, repeats: int) -> dict[str, list[float]]:
    """Return the processor seconds of forward passes, one entry per round.

    They are plain, or watched as either pass of the batched engine does; the second one
    perturbs nothing.
    """
    sample, _ = trainer._prepare_sample(batch)
    model = trainer.get_model()
    engine, tables = Engine(model), Tables()
    model.train()
    start = RandomState.capture(engine.space)
    seconds: dict[str, list[float]] = {"plain": [], "first": [], "second": []}

    def forward_under(watch: AbstractContextManager[Any]) -> float:
        def forward() -> None:
            start.replay()
            with watch:
                trainer.criterion(model, sample)

        return timed(forward, _CPU)[0].processor

    with no_collection(), own_projections(model):
        for _ in range(repeats + 1):
            first = Recording(engine.names, tables)
            seconds["plain"].append(forward_under(nullcontext()))
            seconds["first"].append(forward_under(first))
            second = Perturbing(engine.names, first.records, [None] * len(first.records), {})
            seconds["second"].append(forward_under(second))
    start.replay()
    return {name: times[1:] for name, times in seconds.items()}  # the first round warms up


def _added_by_watching(watch: Mapping[str, Sequence[float]]) -> float:
    """Return what watching both passes of an update adds, in plain forward passes."""
    rounds = zip(watch["plain"], watch["first"], watch["second"], strict=True)
    return statistics.median((first + second) / plain - 2 for plain, first, second in rounds)


def launches_record_of(
    plan: LaunchesPlan, models: Sequence[Mapping[str, Any]], around: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what was counted, in JSON's types.

    Args:
        plan: What was run.
        models: From :func:`count`.
        around: From :func:`~deltasam_fairseq.benchmarks.record.surroundings`.
    """
    return {
        "benchmark": "launches",
        "schema": SCHEMA,
        "command": plan.command(),
        "settings": settings_of(plan),
        **around,
        "models": list(models),
        "checks": [one for model in models for one in _checks(model)],
    }


def _checks(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    checks = []
    for method, (share, waits) in LIMITS.items():
        if method not in model["updates"]:
            continue
        beyond = model["beyond"][method]
        what = f"operations of {method} beyond its passes, share"
        found = beyond["operations"] / _needed(method, model["passes"])["operations"]
        checks.append(check(model["model"], what, found, share))
        if waits is not None:
            what = f"synchronizations of {method} beyond its passes"
            checks.append(check(model["model"], what, beyond["synchronizations"], waits))
    return checks


def launches_table_of(record: Mapping[str, Any]) -> str:
    """Lay a record of :func:`launches_record_of` out, for people."""
    lines = [f"torch {record['versions'].get('torch')}, counted on the CPU"]
    for model in record["models"]:
        watching = model["watching"]
        lines += [
            "",
            f"{model['model']}: {model['tensors']} parameters, {model['batch']['sentences']} "
            "sentences" + ("" if watching is None else f"; watching {watching:.2f}"),
            _row("", "operations", "beyond", "launches", "beyond", "allocations", "beyond")
            + f"{'waits':>7}{'beyond':>8}",
        ]
        for method, counts in model["updates"].items():
            beyond, shares = model["beyond"][method], model["share_beyond"][method]
            cells = [
                text
                for what in WHATS[:3]
                for text in (str(counts[what]), f"{beyond[what]} ({shares[what]:.1%})")
            ]
            waits = f"{counts['synchronizations']:>7}{beyond['synchronizations']:>8}"
            lines.append(_row(method, *cells) + waits)
    return "\n".join([*lines, "", _LEGEND, "", *map(verdict, record["checks"])])


def _row(method: str, *cells: str) -> str:
    pairs = zip(cells[::2], cells[1::2], strict=True)
    return f"{method:<14}" + "".join(f"{count:>12}{beyond:>18}" for count, beyond in pairs)
