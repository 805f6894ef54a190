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
_STRATEGIES = ("thin", "formed", "plan")


def markdown_of(paths: Sequence[Path]) -> str:
    """Lay records out as Markdown.

    Args:
        paths: Records of one benchmark.

    Returns:
        A table: of the step benchmark what per-instance perturbation costs, with a row
        per model; of the length benchmark a row per width and length.

    Raises:
        UserError: If a file is not a record, or the benchmarks differ.
    """
    records = [_read(path) for path in paths]
    kinds = {record["benchmark"] for record in records}
    if len(kinds) > 1:
        raise UserError(f"records of one benchmark make a table, got {' and '.join(sorted(kinds))}")
    if kinds == {"step"}:
        rows = [_step(model, record) for record in records for model in record["models"]]
        return _table(_STEP, rows)
    heads = ("width", "tokens", "sentences", *_STRATEGIES)
    return _table(heads, [row for record in records for row in _lengths(record)])


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = record["benchmark"] in {"step", "length"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no record of deltasam bench: {error}") from None
    if not known:
        raise UserError(f"{path} is a record of {record['benchmark']}, not of step or length")
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


def _lengths(record: Mapping[str, Any]) -> list[list[str]]:
    settings = record["settings"]
    return [
        [
            str(settings["width"]),
            str(one["tokens"]),
            str(one["sentences"]),
            *(_spread(one["clocks"][settings["clock"]]["ratios"][name]) for name in _STRATEGIES),
        ]
        for one in record["lengths"]
    ]


def _spread(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "–"
    if found["min"] == found["max"]:
        return f"{found['median']:.2f}"
    return f"{found['median']:.2f} ({found['q1']:.2f} – {found['q3']:.2f})"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(markdown_lines(heads, ["---"] * len(heads), rows))
