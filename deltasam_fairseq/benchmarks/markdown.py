"""Records of the benchmarks as the tables of the documentation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.markdown import markdown_lines

_STEP = (
    "model",
    "sentences × tokens",
    "batched / `sam`",
    "by the count of passes",
    "loop / `sam`",
    "`delta_sam` / `sam`",
    "memory over `sam`",
    "forward pass",
)


def markdown_of(paths: Sequence[Path]) -> str:
    """Lay records out as Markdown.

    Args:
        paths: Records of the step benchmark.

    Returns:
        A table of what per-instance perturbation costs, with a row per model.
    """
    records = [_read(path) for path in paths]
    return _table(_STEP, [_step(model, one) for one in records for model in one["models"]])


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = record["benchmark"] == "step"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no record of deltasam bench: {error}") from None
    if not known:
        raise UserError(f"{path} is a record of {record['benchmark']}, not of step")
    found: dict[str, Any] = record
    return found


def _step(model: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    times, batch, memory = (
        model["clocks"][record["settings"]["clock"]],
        model["batch"],
        model["memory"],
    )
    # In records of schema 1 per_instance is the loop.
    batched, loop = (
        ("per_instance", "per_instance_loop")
        if record["schema"] > 1
        else (
            "",
            "per_instance",
        )
    )
    over = times["ratios"].get("sam", {})
    predicted = times["predicted"].get("sam", {}).get(batched)
    copies = memory.get("copies_over_sam", {}).get(batched)
    targets = f" + {_mean(batch, 'target_tokens')}" if batch["target_tokens"] else ""
    return [
        model["model"],
        f"{batch['sentences']} × {_mean(batch, 'source_tokens')}{targets}",
        _spread(over.get(batched)),
        "–" if predicted is None else f"{predicted:.2f}",
        _spread(over.get(loop)),
        _spread(over.get("delta_sam")),
        "–" if copies is None else f"{copies:.1f}",
        f"{memory['forward_copies']:.1f}",
    ]


def _mean(batch: Mapping[str, int], tokens: str) -> str:
    return f"{batch[tokens] / batch['sentences']:.0f}"


def _spread(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "–"
    if found["min"] == found["max"]:
        return f"{found['median']:.2f}"
    return f"{found['median']:.2f} ({found['q1']:.2f} – {found['q3']:.2f})"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(markdown_lines(heads, ["---"] * len(heads), rows))
