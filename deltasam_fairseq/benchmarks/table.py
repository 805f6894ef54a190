"""A record of the step benchmark as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LEGEND = """\
x none, x sam: median over rounds of the times' ratio (quartiles; smallest to largest).
passes: what the ratio would be if forward and backward passes were all that takes time.
memory: peak of an update beyond that of none, in copies of the trainable parameters.
s: median seconds of one update."""


def table_of(record: Mapping[str, Any]) -> str:
    """Lay a record out.

    Args:
        record: From :func:`~deltasam_fairseq.benchmarks.record.record_of`, or
            read from a file that holds one.

    Returns:
        Several lines, without a newline at the end.
    """
    machine, settings = record["hardware"], record["settings"]
    where = ", ".join(machine["gpus"]) if settings["device"] == "cuda" else machine["processor"]
    lines = [
        f"{where}, {machine['cores']} cores, --threads {settings['threads']}, "
        f"torch {record['versions'].get('torch')}, {settings['clock']} time, "
        f"{settings['repeats']} rounds"
    ]
    for model in record["models"]:
        lines += ["", *_model(model, settings["clock"])]
    lines += ["", _LEGEND, ""]
    lines += [verdict(check) for check in record["checks"]]
    return "\n".join(lines)


def verdict(check: Mapping[str, Any]) -> str:
    """Say in a line whether a limit is kept.

    Args:
        check: One of a record's checks.

    Returns:
        The line.
    """
    word, sign = ("ok  ", "<=") if check["passed"] else ("FAIL", ">")
    return (
        f"{word}  {check['model']}: {check['what']}: "
        f"{check['value']:.3f} {sign} {check['limit']:.3f}"
    )


def _model(model: Mapping[str, Any], clock: str) -> list[str]:
    times, memory, batch = model["clocks"][clock], model["memory"], model["batch"]
    passes = times["passes"]
    copies = memory["peak_bytes"]["none"] / model["parameter_bytes"]
    heads = [text for base in times["ratios"] for text in (f"x {base}", "passes")]
    lines = [
        f"{model['model']}: {model['parameters'] / 1e6:.1f} million parameters; "
        f"{batch['sentences']} sentences with {batch['source_tokens']} source tokens"
        + (f" and {batch['target_tokens']} target tokens" if batch["target_tokens"] else ""),
        f"forward : backward {passes['forward_over_backward']['median']:.2f} : 1; a forward pass "
        f"without a graph is {passes['forward_share']['median']:.3f} of forward + backward",
        f"an update of none needs {copies:.1f} copies of the parameters at its peak, "
        f"{memory['forward_copies']:.1f} of them for its forward pass",
        _row("", *heads, "memory", "s"),
    ]
    for method, seconds in times["seconds"].items():
        cells = []
        for base, ratios in times["ratios"].items():
            predicted = times["predicted"][base].get(method)
            cells += [_spread(ratios[method]), "-" if predicted is None else f"{predicted:.3f}"]
        row = _row(
            method, *cells, f"{memory['extra_copies'][method]:.3f}", f"{seconds['median']:.2f}"
        )
        if seconds["n"] != times["seconds"]["none"]["n"]:
            row += f"  in {seconds['n']} of {times['seconds']['none']['n']} rounds"
        if model["fallbacks"][method]:
            row += f"  {model['fallbacks'][method]:g} fallbacks"
        lines.append(row)
    return lines


def _row(method: str, *cells: str) -> str:
    *ratios, memory, seconds = cells
    text = f"{method:<13}"
    for spread, predicted in zip(ratios[::2], ratios[1::2], strict=True):
        text += f"{spread:<35}{predicted:>6}   "
    return f"{text}{memory:>6}{seconds:>7}"


def _spread(found: Mapping[str, float]) -> str:
    if found["min"] == found["max"]:
        return f"{found['median']:.3f}"
    return (
        f"{found['median']:.3f} ({found['q1']:.2f}-{found['q3']:.2f}; "
        f"{found['min']:.2f}-{found['max']:.2f})"
    )
