"""A measurement as one JSON object, with everything needed to redo it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from deltasam_fairseq.benchmarks import environment
from deltasam_fairseq.benchmarks.cost_model import PASSES, PassSeconds, predicted_ratio
from deltasam_fairseq.benchmarks.limits import checks_of
from deltasam_fairseq.benchmarks.measurement import CLOCKS, Measurement
from deltasam_fairseq.benchmarks.plan import Plan
from deltasam_fairseq.benchmarks.spread import spread_of

# In records of schema 1 ``per_instance`` is what ``per_instance_loop`` is now.
SCHEMA = 2

# Methods that others are compared with.
BASES = ("none", "sam")


def surroundings() -> dict[str, Any]:
    """Say when, on and with what a measurement runs; to be asked before it starts.

    Returns:
        The part of a record that describes the machine and the software.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": environment.commit(),
        "hardware": environment.hardware(),
        "load": environment.load(),
        "versions": environment.versions(),
    }


def record_of(
    plan: Plan, found: Sequence[Measurement], around: Mapping[str, Any]
) -> dict[str, Any]:
    """Sum up what was measured.

    Args:
        plan: What was run.
        found: One measurement per model.
        around: From :func:`surroundings`.

    Returns:
        Only what JSON knows: numbers, strings, lists and dictionaries.
    """
    # The limits are those of fp32, in which a probe of Eq. 5 is a pass like the others.
    limited = found if plan.precision == "fp32" else ()
    checks = [check for one in limited for check in checks_of(one, plan.clock)]
    return {
        "benchmark": "step",
        "schema": SCHEMA,
        "command": plan.command(),
        "settings": plan.settings(),
        **around,
        "models": [_model(one) for one in found],
        "checks": [{**check._asdict(), "passed": check.passed} for check in checks],
    }


def _model(found: Measurement) -> dict[str, Any]:
    return {
        "model": found.model,
        "flags": found.flags,
        "method_flags": found.method_flags,
        "width": found.width,
        "parameters": found.parameters,
        "parameter_bytes": found.parameter_bytes,
        "batch": found.batch,
        "clocks": {clock: _times(found, clock) for clock in CLOCKS},
        "calls": {
            method: {name: _rounded(number) for name, number in calls.items()}
            for method, calls in found.calls.items()
        },
        "fallbacks": found.fallbacks,
        "skipped": found.skipped,
        "memory": {
            "forward_copies": found.forward_bytes / found.parameter_bytes,
            "peak_bytes": found.peak,
            "extra_copies": {method: found.extra_copies(method) for method in found.peak},
            **_over_sam(found),
        },
    }


def _over_sam(found: Measurement) -> dict[str, Any]:
    if "sam" not in found.peak:
        return {}
    return {"copies_over_sam": {method: found.extra_copies(method, "sam") for method in found.peak}}


def _times(found: Measurement, clock: str) -> dict[str, Any]:
    passes, typical = found.pass_seconds(clock), found.typical_passes(clock)
    methods = list(found.updates)
    return {
        "seconds": {method: rounded_spread(found.seconds(method, clock)) for method in methods},
        "tokens_per_second": {
            method: _rounded(found.tokens / spread_of(found.seconds(method, clock)).median)
            for method in methods
        },
        **({"waiting": found.waiting(clock)} if found.working else {}),
        "ratios": {
            base: {method: rounded_spread(found.ratios(method, base, clock)) for method in methods}
            for base in BASES
            if base in methods
        },
        "predicted": {
            base: {m: predicted_ratio(m, base, typical) for m in methods if m in PASSES}
            for base in BASES
            if base in methods
        },
        "passes": {
            **{
                name: rounded_spread([getattr(p, name) for p in passes])
                for name in PassSeconds._fields
            },
            "forward_share": rounded_spread([p.forward_share for p in passes]),
            "forward_over_backward": rounded_spread([p.forward_over_backward for p in passes]),
        },
    }


def rounded_spread(values: Sequence[float]) -> dict[str, float]:
    """Sum measurements up for a record.

    Args:
        values: At least one number.

    Returns:
        Their spread by name, with six digits: more than any clock is worth.
    """
    return {name: _rounded(value) for name, value in spread_of(values)._asdict().items()}


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")
