"""A record of the step benchmark as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltasam_fairseq.benchmarks.limits import LEAST_PARAMETERS, LEAST_TOKENS
from deltasam_fairseq.benchmarks.methods import METHODS

_LEGEND = f"""\
x none, x sam: median over rounds of the times' ratio (quartiles; smallest to largest).
passes: what the ratio would be if forward and backward passes were all that takes time.
memory: peak of an update beyond that of none, in copies of the trainable parameters;
over sam: beyond that of sam.
ms: median milliseconds of one update. tokens/s: of sources and targets together.
Limits are for models of {LEAST_PARAMETERS / 1e6:g} million parameters and more; those of time for
batches of {LEAST_TOKENS} tokens and more."""
_CELLS = ("memory", "over sam", "ms", "tokens/s")
_CALLS = "F, B: forward and backward passes of an update, in passes over its batch."
_WAITING = "waits: share of an update in which the device waits for Python."

# What records of schema 1 call otherwise.
_OLD_NAMES = {"per_instance": "per_instance_loop"}


def table_of(record: Mapping[str, Any]) -> str:
    """Lay a record out.

    Args:
        record: From :func:`~deltasam_fairseq.benchmarks.record.record_of`, or
            read from a file that holds one.

    Returns:
        Several lines, without a newline at the end.
    """
    settings = record["settings"]
    lines = [ran_on(record)]
    names = _OLD_NAMES if record["schema"] < 2 else {}
    for model in record["models"]:
        lines += ["", *_model(model, settings["clock"], names)]
    lines += ["", _LEGEND]
    if any("waiting" in model["clocks"][settings["clock"]] for model in record["models"]):
        lines.append(_WAITING)
    if any(set(model.get("method_flags", ())) - set(METHODS) for model in record["models"]):
        lines.append(_CALLS)
    lines.append("")
    lines += [verdict(check) for check in record["checks"]]
    return "\n".join(lines)


def ran_on(record: Mapping[str, Any]) -> str:
    """Say in a line what a record was measured on and how.

    Args:
        record: A record of a benchmark.

    Returns:
        The line.
    """
    machine, settings = record["hardware"], record["settings"]
    where = ", ".join(machine["gpus"]) if settings["device"] == "cuda" else machine["processor"]
    half = settings.get("precision", "fp32")
    if half != "fp32":
        where += f", {half}"
    return (
        f"{where}, {machine['cores']} cores, --threads {settings['threads']}, "
        f"torch {record['versions'].get('torch')}, {settings['clock']} time, "
        f"{settings['repeats']} rounds"
    )


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


def _model(model: Mapping[str, Any], clock: str, names: Mapping[str, str]) -> list[str]:
    times, memory, batch = model["clocks"][clock], model["memory"], model["batch"]
    passes = times["passes"]
    over_sam = memory.get("copies_over_sam", {})
    waiting = times.get("waiting", {})
    # Beside rivals, whose passes no prediction counts.
    calls = model.get("calls", {}) if set(model["method_flags"]) - set(METHODS) else {}
    model_tokens = batch["source_tokens"] + batch["target_tokens"]
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
        _row("", heads, [*_CELLS, *(["waits"] if waiting else []), *(["F", "B"] if calls else [])]),
    ]
    for method, seconds in times["seconds"].items():
        cells = []
        for base, ratios in times["ratios"].items():
            predicted = times["predicted"][base].get(method)
            cells += [spread_text(ratios[method]), "-" if predicted is None else f"{predicted:.3f}"]
        own = [
            f"{memory['extra_copies'][method]:.3f}",
            f"{over_sam[method]:.3f}" if method in over_sam else "-",
            f"{1000 * seconds['median']:.1f}",
            f"{model_tokens / seconds['median']:,.0f}",
            *([f"{waiting[method]:.2f}"] if waiting else []),
            *(f"{calls[method][what]:g}" for what in ("forward", "backward") if calls),
        ]
        row = _row(names.get(method, method), cells, own)
        if seconds["n"] != times["seconds"]["none"]["n"]:
            row += f"  in {seconds['n']} of {times['seconds']['none']['n']} rounds"
        if model["fallbacks"][method]:
            row += f"  {model['fallbacks'][method]:g} fallbacks"
        # Records of earlier versions do not count them.
        if model.get("skipped", {}).get(method):
            row += f"  {model['skipped'][method]} SKIPPED: not the time of an update"
        lines.append(row)
    return lines


def _row(method: str, ratios: Sequence[str], cells: Sequence[str]) -> str:
    text = f"{method:<17} "
    for spread, predicted in zip(ratios[::2], ratios[1::2], strict=True):
        text += f"{spread:<35}{predicted:>6}   "
    return text + "".join(f"{cell:>10}" for cell in cells)


def spread_text(found: Mapping[str, float]) -> str:
    """Write a spread in a table's cell.

    Args:
        found: Of a record.

    Returns:
        Median, quartiles and extremes; the median alone if there is nothing else.
    """
    if found["min"] == found["max"]:
        return f"{found['median']:.3f}"
    return (
        f"{found['median']:.3f} ({found['q1']:.2f}-{found['q3']:.2f}; "
        f"{found['min']:.2f}-{found['max']:.2f})"
    )
