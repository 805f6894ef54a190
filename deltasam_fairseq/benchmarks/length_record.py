"""The length benchmark's measurements as one JSON object, and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltasam_fairseq.benchmarks.length import STRATEGIES, LengthMeasurement
from deltasam_fairseq.benchmarks.length_plan import LengthPlan
from deltasam_fairseq.benchmarks.measurement import CLOCKS
from deltasam_fairseq.benchmarks.record import rounded_spread
from deltasam_fairseq.benchmarks.table import ran_on, spread_text

SCHEMA = 1
_LEGEND = """\
thin, formed, plan: a batched per-instance step in units of a SAM step, median over rounds of the
times' ratio (quartiles; smallest to largest), with thin products of factors always, with formed
gradients of linear layers always, and as the engine chooses.
s: median seconds of a SAM step."""


def length_record_of(
    plan: LengthPlan, found: Sequence[LengthMeasurement], around: Mapping[str, Any]
) -> dict[str, Any]:
    """Sum up what was measured.

    Args:
        plan: What was run.
        found: One measurement per length.
        around: From :func:`~deltasam_fairseq.benchmarks.record.surroundings`.

    Returns:
        Only what JSON knows: numbers, strings, lists and dictionaries.
    """
    return {
        "benchmark": "length",
        "schema": SCHEMA,
        "command": plan.command(),
        "settings": {**plan.settings(), "lengths": list(plan.lengths)},
        **around,
        "lengths": [
            {
                "tokens": one.tokens,
                "sentences": one.sentences,
                "clocks": {clock: _times(one, clock) for clock in CLOCKS},
            }
            for one in found
        ],
    }


def length_table_of(record: Mapping[str, Any]) -> str:
    """Lay a record out.

    Args:
        record: From :func:`length_record_of`, or read from a file that holds one.

    Returns:
        Several lines, without a newline at the end.
    """
    settings = record["settings"]
    width = settings["width"]
    lines = [
        ran_on(record),
        "",
        f"{settings['layers']} layers of width {width}, {settings['words']} words, "
        f"{settings['batch_tokens']} tokens in a batch; products cost the same at "
        f"{width // 2} tokens (layers {width} x {width}) and {4 * width // 5} "
        f"({width} x {4 * width})",
        _row("tokens", "sentences", *STRATEGIES, "s"),
    ]
    for one in record["lengths"]:
        times = one["clocks"][settings["clock"]]
        ratios = [spread_text(times["ratios"][name]) for name in STRATEGIES]
        seconds = f"{times['seconds']['sam']['median']:.2f}"
        lines.append(_row(str(one["tokens"]), str(one["sentences"]), *ratios, seconds))
    return "\n".join([*lines, "", _LEGEND])


def _times(found: LengthMeasurement, clock: str) -> dict[str, Any]:
    strategies = [name for name in found.steps if name != "sam"]
    return {
        "seconds": {name: rounded_spread(found.seconds(name, clock)) for name in found.steps},
        "ratios": {name: rounded_spread(found.ratios(name, clock)) for name in strategies},
    }


def _row(tokens: str, sentences: str, *cells: str) -> str:
    *ratios, seconds = cells
    return f"{tokens:>6}{sentences:>11}   " + "".join(f"{r:<35}" for r in ratios) + f"{seconds:>6}"
