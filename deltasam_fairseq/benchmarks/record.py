"""What was measured on a model, and all models' measurements as one JSON object."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from deltasam_fairseq.benchmarks.plan import Plan, settings_of
from deltasam_fairseq.benchmarks.variants import (
    CLOCKS,
    PASSES,
    Times,
    forward_share,
    predicted_seconds,
)
from deltasam_fairseq.recipes import environment_record

SCHEMA = 2

# Below these sizes the limits say nothing: the saved random state is a share of the memory, and
# what torch does per operation, whatever its size, a share of the time.
LEAST_PARAMETERS = 5_000_000
LEAST_TOKENS = 512  # in a batch, of sources and targets, for the limits on time

SAM_TO_NONE = 2.05
# Holds where a forward pass is a third of forward + backward. The passes alone take 4/3 of SAM's
# there, and 1 + share at another share. The limit moves with them, so that the same is left for
# everything else.
DELTA_SAM_TO_SAM = 1.40
FORWARD_SHARE = 1 / 3
EXTRA_COPIES = 1.05
# Of the batched per-instance step, at the widths of MiniLM and BERT-base, on the batches that
# such models are fine-tuned on: sentences, and tokens of each. Its memory grows with the
# activations and has no limit.
PER_INSTANCE_TO_SAM = 1.15
PER_INSTANCE_WIDTHS = (384, 768)
PER_INSTANCE_SENTENCES = (16, 32)
PER_INSTANCE_TOKENS = (64, 128)


@dataclass
class Measurement:
    """What was measured on one model.

    Args:
        model: Its name.
        flags: fairseq's flags, with ``METHOD`` in the place of the variant's own.
        method_flags: By variant, what stands in ``METHOD``'s place.
        width: Width of the model's layers.
        parameters: Trainable parameters, tied ones once.
        parameter_bytes: Size of one copy of them.
        batch: Sentences, source tokens and target tokens of the update, padding not counted.
        updates: By variant, one entry per round; none in rounds that it sat out.
        passes: Per round, what each of :data:`~.variants.PASSES` took by itself.
        fallbacks: By variant, how many of its measured updates took a fallback. One adds a
            forward and a backward pass.
        skipped: By variant, how many of its measured updates were given up, because a gradient
            overflowed or memory ran out; they took less than an update takes.
        working: By variant, seconds of one update in which the device worked; empty if it was
            not asked for.
        peak: By variant, bytes at the worst moment of an update; parameters and the optimizer's
            state do not count.
        forward_bytes: Bytes at the worst moment of one forward pass: what it keeps for the
            backward pass and a little more.
        calls: By variant, ``forward`` and ``backward`` passes of an update, in passes over its
            batch.
    """

    model: str
    flags: str
    method_flags: dict[str, str]
    width: int
    parameters: int
    parameter_bytes: int
    batch: dict[str, int]
    updates: dict[str, list[Times | None]] = field(default_factory=dict)
    passes: list[dict[str, Times]] = field(default_factory=list)
    fallbacks: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    working: dict[str, float] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    forward_bytes: int = 0
    calls: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of an update, sources and targets."""
        return self.batch["source_tokens"] + self.batch["target_tokens"]

    def seconds(self, method: str, clock: str) -> list[float]:
        """List the seconds per update of the rounds that a variant took part in."""
        return [getattr(times, clock) for times in self.updates[method] if times is not None]

    def ratios(self, method: str, base: str, clock: str) -> list[float]:
        """Divide two variants' times round by round, where both took part."""
        pairs = zip(self.updates[method], self.updates[base], strict=True)
        return [
            getattr(above, clock) / getattr(below, clock)
            for above, below in pairs
            if above is not None and below is not None
        ]

    def pass_seconds(self, clock: str) -> list[dict[str, float]]:
        """List what the passes took, per round."""
        return [{name: getattr(t, clock) for name, t in each.items()} for each in self.passes]

    def typical_passes(self, clock: str) -> dict[str, float]:
        """Return the medians over rounds of what the passes took."""
        rounds = self.pass_seconds(clock)
        return {name: statistics.median(each[name] for each in rounds) for name in PASSES}

    def extra_copies(self, method: str, base: str) -> float:
        """Return peak memory beyond another variant's, in copies of the parameters."""
        return (self.peak[method] - self.peak[base]) / self.parameter_bytes


def surroundings() -> dict[str, Any]:
    """Say when, on and with what a measurement runs; to be asked before it starts."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": environment_record.commit(),
        "hardware": {
            "processor": environment_record.processor(),
            "machine": platform.machine(),
            "cores": environment_record.cores(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "load": environment_record.load(),
        "versions": environment_record.versions(),
    }


def record_of(
    plan: Plan, found: Sequence[Measurement], around: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a summary of what was measured, in JSON's types.

    Args:
        plan: What was run.
        found: One measurement per model.
        around: From :func:`surroundings`.
    """
    # The limits are those of fp32: in fp16 a probe of Eq. 5 is no pass like the others.
    limited = found if plan.precision == "fp32" else ()
    return {
        "benchmark": "step",
        "schema": SCHEMA,
        "command": plan.command(),
        "settings": settings_of(plan),
        **around,
        "models": [_model(one) for one in found],
        "checks": [check for one in limited for check in checks_of(one, plan.clock)],
    }


def _model(found: Measurement) -> dict[str, Any]:
    copies = {
        base: {method: found.extra_copies(method, base) for method in found.peak}
        for base in ("none", "sam")
        if base in found.peak
    }
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
            "extra_copies": copies["none"],
            **({"copies_over_sam": copies["sam"]} if "sam" in copies else {}),
        },
    }


def _times(found: Measurement, clock: str) -> dict[str, Any]:
    passes, methods = found.pass_seconds(clock), list(found.updates)
    bases = [base for base in ("none", "sam") if base in methods]
    seconds = {method: found.seconds(method, clock) for method in methods}
    medians = {method: statistics.median(times) for method, times in seconds.items()}
    predicted = {m: predicted_seconds(m, found.typical_passes(clock)) for m in methods}
    counted = {method: took for method, took in predicted.items() if took is not None}
    # By the profile of one update, which may say that the device works longer than an update takes.
    waiting = {m: max(0.0, 1 - worked / medians[m]) for m, worked in found.working.items()}
    return {
        "seconds": {method: rounded_spread(times) for method, times in seconds.items()},
        "tokens_per_second": {m: _rounded(found.tokens / took) for m, took in medians.items()},
        **({"waiting": waiting} if waiting else {}),
        "ratios": {
            base: {m: rounded_spread(found.ratios(m, base, clock)) for m in methods}
            for base in bases
        },
        "predicted": {
            base: {method: took / counted[base] for method, took in counted.items()}
            for base in bases
        },
        "passes": {
            **{name: rounded_spread([each[name] for each in passes]) for name in PASSES},
            "forward_share": rounded_spread([forward_share(each) for each in passes]),
            "forward_over_backward": rounded_spread(
                [each["forward"] / each["backward"] for each in passes]
            ),
        },
    }


def rounded_spread(values: Sequence[float]) -> dict[str, float]:
    """Return number, extremes, quartiles and median of some measurements, with six digits.

    Args:
        values: At least one number; quartiles are interpolated.

    Example:
        >>> rounded_spread([3.0, 1.0, 2.0, 4.0, 5.0])
        {'n': 5, 'min': 1.0, 'q1': 2.0, 'median': 3.0, 'q3': 4.0, 'max': 5.0}
    """
    quartiles = [values[0]] * 3
    if len(values) > 1:
        quartiles = statistics.quantiles(values, n=4, method="inclusive")
    numbers = zip(
        ("min", "q1", "median", "q3", "max"), (min(values), *quartiles, max(values)), strict=True
    )
    return {"n": len(values), **{name: _rounded(value) for name, value in numbers}}


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def check(model: str, what: str, value: float, limit: float) -> dict[str, Any]:
    """Return whether a measurement keeps its limit; a value that is not a number does not pass."""
    return {"model": model, "what": what, "value": value, "limit": limit, "passed": value <= limit}


def checks_of(found: Measurement, clock: str = "elapsed") -> list[dict[str, Any]]:
    """Return a check of every limit that holds for the variants, model and batch.

    Args:
        found: What was measured.
        clock: Of the times.
    """
    if found.parameters < LEAST_PARAMETERS:
        return []
    checks = []
    for method, base, limit in _limits(found, clock) if found.tokens >= LEAST_TOKENS else ():
        if {method, base} <= found.updates.keys():
            ratio = statistics.median(found.ratios(method, base, clock))
            checks.append(check(found.model, f"time of {method} over {base}", ratio, limit))
    for method in ("sam", "delta_sam"):
        if method in found.updates:
            what = f"extra memory of {method}, copies of the parameters"
            copies = found.extra_copies(method, "none")
            checks.append(check(found.model, what, copies, EXTRA_COPIES))
    return checks


def _limits(found: Measurement, clock: str) -> list[tuple[str, str, float]]:
    """Return the limits on times that hold for a model and a batch: a variant over another."""
    delta_sam = DELTA_SAM_TO_SAM + forward_share(found.typical_passes(clock)) - FORWARD_SHARE
    limits = [("sam", "none", SAM_TO_NONE), ("delta_sam", "sam", delta_sam)]
    sentences = found.batch["sentences"]
    fewest, most = PER_INSTANCE_SENTENCES
    shortest, longest = PER_INSTANCE_TOKENS
    if (
        found.width in PER_INSTANCE_WIDTHS
        and fewest <= sentences <= most
        and shortest <= found.batch["source_tokens"] / sentences <= longest
    ):
        limits.append(("per_instance", "sam", PER_INSTANCE_TO_SAM))
    return limits
