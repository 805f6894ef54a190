"""Records of the step benchmark as a table for people, and as the tables of the documentation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltasam_fairseq.benchmarks.variants import REGULARIZED, REGULARIZERS
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.markdown import markdown_lines

_LEGEND = """\
x none, x sam: median over rounds of the times' ratio (quartiles; smallest to largest).
passes: what the ratio would be if forward and backward passes were all that takes time.
memory: peak of an update beyond that of none, in copies of the trainable parameters;
over sam: beyond that of sam.
ms: median milliseconds of one update. tokens/s: of sources and targets together.
Limits are for models of 5 million parameters and more; those of time for
batches of 512 tokens and more."""
_WAITING = "waits: share of an update in which the device waits for Python."
_CALLS = "F, B: forward and backward passes of an update, in passes over its batch."
_MARKDOWN = (
    "model",
    "sentences × tokens",
    "batched / `sam`",
    "by the count of passes",
    "loop / `sam`",
    "`delta_sam` / `sam`",
    "memory over `sam`",
    "forward pass",
)


def table_of(record: Mapping[str, Any]) -> str:
    """Return a record as a table, in several lines.

    Args:
        record: Of :func:`~deltasam_fairseq.benchmarks.record.record_of`, or read from a file.
    """
    clock = record["settings"]["clock"]
    lines = [_ran_on(record)]
    for model in record["models"]:
        lines += ["", *_model(model, clock)]
    lines += ["", _LEGEND]
    if any("waiting" in model["clocks"][clock] for model in record["models"]):
        lines.append(_WAITING)
    if any(_shows_calls(model) for model in record["models"]):
        lines.append(_CALLS)
    return "\n".join([*lines, "", *map(verdict, record["checks"])])


def verdict(check: Mapping[str, Any]) -> str:
    """Say in a line whether a limit is kept."""
    word, sign = ("ok  ", "<=") if check["passed"] else ("FAIL", ">")
    return (
        f"{word}  {check['model']}: {check['what']}: "
        f"{check['value']:.3f} {sign} {check['limit']:.3f}"
    )


def _ran_on(record: Mapping[str, Any]) -> str:
    machine, settings = record["hardware"], record["settings"]
    where = ", ".join(machine["gpus"]) if settings["device"] == "cuda" else machine["processor"]
    # Early records have no precision.
    half = settings.get("precision", "fp32")
    if half != "fp32":
        where += f", {half}"
    return (
        f"{where}, {machine['cores']} cores, --threads {settings['threads']}, "
        f"torch {record['versions'].get('torch')}, {settings['clock']} time, "
        f"{settings['repeats']} rounds"
    )


def _shows_calls(model: Mapping[str, Any]) -> bool:
    """Whether a regularizer was measured: no prediction counts its passes."""
    return not REGULARIZED.keys().isdisjoint(model["memory"]["peak_bytes"])


def _model(model: Mapping[str, Any], clock: str) -> list[str]:
    times, memory, batch = model["clocks"][clock], model["memory"], model["batch"]
    passes = times["passes"]
    copies = memory["peak_bytes"]["none"] / model["parameter_bytes"]
    ratios = [text for base in times["ratios"] for text in (f"x {base}", "passes")]
    cells = ["memory", "over sam", "ms", "tokens/s", *(["waits"] if "waiting" in times else [])]
    if _shows_calls(model):
        cells += ["F", "B"]
    return [
        f"{model['model']}: {model['parameters'] / 1e6:.1f} million parameters; "
        f"{batch['sentences']} sentences with {batch['source_tokens']} source tokens"
        + (f" and {batch['target_tokens']} target tokens" if batch["target_tokens"] else ""),
        f"forward : backward {passes['forward_over_backward']['median']:.2f} : 1; a forward pass "
        f"without a graph is {passes['forward_share']['median']:.3f} of forward + backward",
        f"an update of none needs {copies:.1f} copies of the parameters at its peak, "
        f"{memory['forward_copies']:.1f} of them for its forward pass",
        _row("", ratios, cells),
        *(_variant(method, model, times) for method in times["seconds"]),
    ]


def _variant(method: str, model: Mapping[str, Any], times: Mapping[str, Any]) -> str:
    memory, batch = model["memory"], model["batch"]
    seconds, rounds = times["seconds"][method], times["seconds"]["none"]["n"]
    ratios = []
    for base, found in times["ratios"].items():
        ratios += [_spread(found[method]), _number(times["predicted"][base].get(method))]
    tokens = batch["source_tokens"] + batch["target_tokens"]
    cells = [
        _number(memory["extra_copies"][method]),
        _number(memory.get("copies_over_sam", {}).get(method)),
        f"{1000 * seconds['median']:.1f}",
        f"{tokens / seconds['median']:,.0f}",
        *([f"{times['waiting'][method]:.2f}"] if "waiting" in times else []),
    ]
    if _shows_calls(model):
        cells += [f"{model['calls'][method][name]:g}" for name in ("forward", "backward")]
    row = _row(method, ratios, cells)
    if seconds["n"] != rounds:
        row += f"  in {seconds['n']} of {rounds} rounds"
    if model["fallbacks"][method]:
        row += f"  {model['fallbacks'][method]:g} fallbacks"
    # Early records do not count them.
    if model.get("skipped", {}).get(method):
        row += f"  {model['skipped'][method]} SKIPPED: not the time of an update"
    return row


def _row(method: str, ratios: Sequence[str], cells: Sequence[str]) -> str:
    text = f"{method:<19} "
    for spread, predicted in zip(ratios[::2], ratios[1::2], strict=True):
        text += f"{spread:<35}{predicted:>6}   "
    return text + "".join(f"{cell:>10}" for cell in cells)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _spread(found: Mapping[str, float]) -> str:
    if found["min"] == found["max"]:
        return f"{found['median']:.3f}"
    return (
        f"{found['median']:.3f} ({found['q1']:.2f}-{found['q3']:.2f}; "
        f"{found['min']:.2f}-{found['max']:.2f})"
    )


def markdown_of(paths: Sequence[Path]) -> str:
    """Return records as tables in Markdown.

    The cost of per-instance has a row per model; models that were measured with regularizers
    have a table each, a row per regularizer.
    """
    found = [
        (model, record["settings"]["clock"])
        for record in map(_read, paths)
        for model in record["models"]
    ]
    plain = [_markdown(*one) for one in found if not _shows_calls(one[0])]
    tables = [markdown_lines(_MARKDOWN, ["---"] * len(_MARKDOWN), plain)] if plain else []
    tables += [_regularized(*one) for one in found if _shows_calls(one[0])]
    return "\n\n".join("\n".join(lines) for lines in tables)


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        benchmark = record["benchmark"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no record of deltasam bench: {error}") from None
    if benchmark != "step":
        raise UserError(f"{path} is a record of {benchmark}, not of step")
    return record


def _markdown(model: Mapping[str, Any], clock: str) -> list[str]:
    times, batch, memory = model["clocks"][clock], model["batch"], model["memory"]
    over_sam = times["ratios"].get("sam", {})
    predicted = times["predicted"].get("sam", {}).get("per_instance")
    copies = memory.get("copies_over_sam", {}).get("per_instance")
    means = {side: f"{batch[side] / batch['sentences']:.0f}" for side in batch}
    targets = f" + {means['target_tokens']}" if batch["target_tokens"] else ""
    return [
        model["model"],
        f"{batch['sentences']} × {means['source_tokens']}{targets}",
        _quartiles(over_sam.get("per_instance")),
        "–" if predicted is None else f"{predicted:.2f}",
        _quartiles(over_sam.get("per_instance_loop")),
        _quartiles(over_sam.get("delta_sam")),
        "–" if copies is None else f"{copies:.1f}",
        f"{memory['forward_copies']:.1f}",
    ]


def _regularized(model: Mapping[str, Any], clock: str) -> list[str]:
    """Lay out each regularizer's passes and memory alone, and its time with each method."""
    times, memory = model["clocks"][clock]["ratios"]["none"], model["memory"]["extra_copies"]
    methods = [name for name in times if name not in REGULARIZED]
    rows = []
    for regularizer in ("none", *(name for name in REGULARIZERS if name in times)):
        calls = model["calls"][regularizer]
        cells = [f"`{regularizer}`"]
        cells.append(f"{calls['forward']:g} F + {calls['backward']:g} B")
        for method in methods:
            both = method if regularizer == "none" else f"{method}+{regularizer}"
            both = regularizer if method == "none" else both
            cells.append(f"{times[both]['median']:.2f}" if both in times else "–")
        rows.append([*cells, f"{memory[regularizer]:.2f}"])
    head = ["", "passes", *(f"`{method}`" for method in methods), "memory"]
    return markdown_lines(head, ["---", "---", *["--:"] * (len(methods) + 1)], rows)


def _quartiles(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "–"
    if found["min"] == found["max"]:
        return f"{found['median']:.2f}"
    return f"{found['median']:.2f} ({found['q1']:.2f} – {found['q3']:.2f})"
