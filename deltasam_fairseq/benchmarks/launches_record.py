"""The launches benchmark's counts as one JSON object, and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from deltasam_fairseq.benchmarks.counting import Counts
from deltasam_fairseq.benchmarks.launches import LaunchMeasurement
from deltasam_fairseq.benchmarks.launches_plan import LaunchesPlan
from deltasam_fairseq.benchmarks.limits import Check
from deltasam_fairseq.benchmarks.record import rounded_spread
from deltasam_fairseq.benchmarks.table import verdict

SCHEMA = 1
WHATS = ("operations", "launches", "allocations", "synchronizations")
# Beyond the passes: operations as a share of theirs, and synchronizations.
LIMITS = {"sam": (0.03, 2), "delta_sam": (0.03, 2), "per_instance": (0.5, None)}
_LEGEND = """\
operations: what was dispatched in one update; an operation on a list of tensors is one.
launches: those that compute, all but views. allocations: tensors with memory of their own.
waits: synchronizations, that is how often the program waited for a value.
beyond: what is more than in an update of none and in the method's other passes; in per cent of
what its passes take. watching: what seeing every use of a parameter takes in both passes of the
batched engine, in plain forward passes (processor time)."""


def launches_record_of(
    plan: LaunchesPlan, found: Sequence[LaunchMeasurement], around: Mapping[str, Any]
) -> dict[str, Any]:
    """Sum up what was counted.

    Args:
        plan: What was run.
        found: One measurement per model.
        around: From :func:`~deltasam_fairseq.benchmarks.record.surroundings`.

    Returns:
        Only what JSON knows: numbers, strings, lists and dictionaries.
    """
    checks = [check for one in found for check in _checks(one)]
    return {
        "benchmark": "launches",
        "schema": SCHEMA,
        "command": plan.command(),
        "settings": {
            **plan.settings(),
            "models": list(plan.models),
            "methods": list(plan.methods),
        },
        **around,
        "models": [_model(one) for one in found],
        "checks": [{**check._asdict(), "passed": check.passed} for check in checks],
    }


def launches_table_of(record: Mapping[str, Any]) -> str:
    """Lay a record out.

    Args:
        record: From :func:`launches_record_of`, or read from a file that holds one.

    Returns:
        Several lines, without a newline at the end.
    """
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


def _checks(found: LaunchMeasurement) -> list[Check]:
    checks = []
    for method, (share, waits) in LIMITS.items():
        if method in found.updates:
            what = f"operations of {method} beyond its passes, share"
            value = found.share_beyond(method, "operations")
            checks.append(Check(found.model, what, value, share))
            if waits is not None:
                what = f"synchronizations of {method} beyond its passes"
                checks.append(
                    Check(found.model, what, found.beyond(method, "synchronizations"), waits)
                )
    return checks


def _model(found: LaunchMeasurement) -> dict[str, Any]:
    methods = list(found.updates)
    return {
        "model": found.model,
        "flags": found.flags,
        "tensors": found.tensors,
        "batch": found.batch,
        "passes": {name: _numbers(counts) for name, counts in found.passes.items()},
        "updates": {method: _numbers(found.updates[method]) for method in methods},
        "beyond": {m: {what: found.beyond(m, what) for what in WHATS} for m in methods},
        "share_beyond": {
            m: {what: round(found.share_beyond(m, what), 5) for what in WHATS[:3]} for m in methods
        },
        "watching": found.watching(),
        "watch_seconds": {name: rounded_spread(times) for name, times in found.watch.items()},
    }


def _numbers(counts: Counts) -> dict[str, Any]:
    return {**asdict(counts), "places": dict(counts.places.most_common())}


def _row(method: str, *cells: str) -> str:
    pairs = zip(cells[::2], cells[1::2], strict=True)
    return f"{method:<14}" + "".join(f"{count:>12}{beyond:>18}" for count, beyond in pairs)
