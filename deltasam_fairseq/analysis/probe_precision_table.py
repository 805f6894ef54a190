"""Records of the probes' precision as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deltasam_fairseq.markdown import markdown_lines

NOT_RUN = "not run"


def tables_of(records: Sequence[Mapping[str, Any]]) -> str:
    """Lay records out, one table each.

    Args:
        records: From :func:`~deltasam_fairseq.analysis.kept_record.read_record`.

    Returns:
        Markdown, without a newline at the end.
    """
    return "\n\n".join(_table(record) for record in records)


def _table(record: Mapping[str, Any]) -> str:
    radii = record["settings"]["rho"]
    eta = record["settings"]["eta"]
    head = (
        "precision",
        "numerators that are 0",
        "median numerator",
        f"denominators < {eta:g}",
        *(f"rank, ρ = {rho:g}" for rho in radii),
        "batches all 0",
        "cosine of the move with r",
    )
    rows = [_row(record, name) for name in dict.fromkeys(c["precision"] for c in record["cells"])]
    rows += [(name, *(NOT_RUN,) * (len(head) - 1)) for name in record["not_run"]]
    rule = ("---", *("--:" for _ in head[1:]))
    return "\n".join([_caption(record), "", *markdown_lines(head, rule, rows)])


def _caption(record: Mapping[str, Any]) -> str:
    model, settings, machine = record["model"], record["settings"], record["hardware"]
    where = ", ".join(machine["gpus"]) if settings["device"] == "cuda" else machine["processor"]
    return (
        f"**{model['name']}** ({model['parameters']:,} weights, "
        f"{model['weights']}; text: {model['text']}): {_batches(record['cells'][0]['batches'])} of "
        f"{settings['sentences']} sentences with {model['mean_tokens']:.0f} tokens on average. "
        f"{where}, torch {record['versions']['torch']}, seed {settings['seed']}."
    )


def _batches(number: int) -> str:
    return "1 batch" if number == 1 else f"{number} batches"


def _row(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    cells = [cell for cell in record["cells"] if cell["precision"] == name]

    def each(text: Callable[[Mapping[str, Any]], str]) -> str:
        return " / ".join(text(cell) for cell in cells)

    return (
        name,
        each(lambda cell: _percent(cell["zero_numerators"])) + " %",
        each(lambda cell: f"{cell['median_numerator']:.1e}"),
        each(lambda cell: _percent(cell["floored"])) + " %",
        *(_rank(cell) for cell in cells),
        each(lambda cell: str(cell["all_zero_batches"])),
        _cosines(cells),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def _cosines(cells: Sequence[Mapping[str, Any]]) -> str:
    """Say how much of the move is r, where rounding to half precision was measured."""
    found = [cell["realised"] for cell in cells]
    return " / ".join(f"{one['cosine']:.2f}" for one in found if one) or "–"


def _rank(cell: Mapping[str, Any]) -> str:
    rank = cell["rank"]
    if rank["mean"] is None:
        return "–"
    spread = "" if rank["sd"] is None else f" ± {rank['sd']:.2f}"
    count = "" if rank["n"] == cell["batches"] else f" (n {rank['n']})"
    return f"{rank['mean']:.2f}{spread}{count}"
