"""A measurement of the estimators as one JSON object, and its tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deltasam_fairseq.analysis.estimator_quality_bench import Cell
from deltasam_fairseq.analysis.estimator_quality_subject import Subject
from deltasam_fairseq.core.checks import positive
from deltasam_fairseq.errors import UserError, at_least
from deltasam_fairseq.markdown import markdown_lines

ANALYSIS, SCHEMA = "estimator-quality", 1
PRECISIONS = ("float32", "float64")
_COLUMNS = {
    "rank": "rank with aᵢ‖∇lᵢ‖",
    "ascent": "cos(v, D)",
    "change": "cos(∂R/∂w, D)",
    "descent": "cos(descent, exact)",
    "floored": "slopes < η",
}
_BASE, _PAIRED = "uniform", "cos(∂R/∂w, D) − uniform's"


@dataclass(frozen=True)
class Settings:
    """What is measured, beside the model.

    Args:
        rho: Radii.
        eta: Floor under the slope, nats.
        batches: How many.
        batch_size: Sentences in a batch.
        precision: Of all that is not said to be in float64.
        probe_radius: Norm of r for the probes that do not take rho.
        probe_count: Directions that are averaged.
        seed: Of everything drawn.
        threads: Threads of one operator.
        minutes: After which no further batch is begun; 0: no limit.

    Raises:
        UserError: If a number is outside its range.
    """

    rho: tuple[float, ...] = (0.01, 0.02, 0.05)
    eta: float = 1e-4
    batches: int = 8
    batch_size: int = 16
    precision: str = "float32"
    probe_radius: float = 0.5
    probe_count: int = 8
    seed: int = 1
    threads: int = 2
    minutes: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        for name, least in (
            ("batches", 1),
            ("batch_size", 2),
            ("probe_count", 1),
            ("seed", 0),
            ("threads", 1),
        ):
            at_least(f"--{name.replace('_', '-')}", getattr(self, name), least)
        try:
            positive(self.eta, "--eta")
            positive(self.probe_radius, "--probe-radius")
            for radius in self.rho:
                positive(radius, "--rho")
        except ValueError as error:
            raise UserError(str(error)) from None
        at_least("--minutes", self.minutes, 0)

    def command(self, source: str) -> str:
        """Return the command line that measures this again.

        Args:
            source: The arguments that name the model and the text.

        Returns:
            One line.
        """
        radii = ",".join(f"{radius:g}" for radius in self.rho)
        return (
            f"deltasam analyse {ANALYSIS} {source} --rho {radii} --eta {self.eta:g} "
            f"--batches {self.batches} --batch-size {self.batch_size} "
            f"--precision {self.precision} --probe-radius {self.probe_radius:g} "
            f"--probe-count {self.probe_count} --seed {self.seed} --threads {self.threads} --json"
        )


def record_of(
    subject: Subject,
    found: Sequence[Sequence[Cell]],
    settings: Settings,
    *,
    command: str,
    around: Mapping[str, Any],
) -> dict[str, Any]:
    """Sum up what was measured.

    Args:
        subject: What was measured on.
        found: The cells of each batch.
        settings: Of the measurement.
        command: What runs it again.
        around: Date, commit, hardware and versions.

    Returns:
        Only what JSON knows.
    """
    keys = dict.fromkeys((cell.rho, cell.name) for cells in found for cell in cells)
    grouped = {
        key: [cell for cells in found for cell in cells if (cell.rho, cell.name) == key]
        for key in keys
    }
    return {
        "analysis": ANALYSIS,
        "schema": SCHEMA,
        "command": command,
        "settings": {**asdict(settings), "rho": list(settings.rho)},
        **around,
        "model": {
            **subject.about,
            "parameters": sum(p.numel() for p in subject.model.parameters()),
        },
        "batches": len(found),
        "cells": [
            {
                "name": name,
                "rho": rho,
                **{field: spread(getattr(cell, field) for cell in cells) for field in _COLUMNS},
            }
            for (rho, name), cells in grouped.items()
        ],
    }


def spread(values: Iterable[float | None]) -> dict[str, Any]:
    """Return number, mean, standard deviation and values of those that are there.

    Args:
        values: One per batch; none where it has no meaning.

    Returns:
        ``n``, ``mean``, ``sd`` (none below two values), ``values``.
    """
    there = [value for value in values if value is not None]
    return {
        "n": len(there),
        "mean": _rounded(statistics.fmean(there)) if there else None,
        "sd": _rounded(statistics.stdev(there)) if len(there) > 1 else None,
        "values": [_rounded(value) for value in there],
    }


def tables_of(records: Sequence[Mapping[str, Any]]) -> str:
    """Lay records out, one table each.

    Args:
        records: From :func:`record_of`.

    Returns:
        Markdown, without a newline at the end.
    """
    return "\n\n".join(_table(record) for record in records)


def _table(record: Mapping[str, Any]) -> str:
    head = ("ρ", "perturbed by", *_COLUMNS.values(), _PAIRED)
    base = {cell["rho"]: cell["change"] for cell in record["cells"] if cell["name"] == _BASE}
    rows = [
        (
            f"{cell['rho']:g}",
            cell["name"],
            *(_text(cell[field], record["batches"]) for field in _COLUMNS),
            _paired(cell["change"], base.get(cell["rho"])),
        )
        for cell in record["cells"]
    ]
    rule = ("--:", "---", *("--:" for _ in head[2:]))
    return "\n".join([_caption(record), "", *markdown_lines(head, rule, rows)])


def _paired(found: Mapping[str, Any], base: Mapping[str, Any] | None) -> str:
    """Write the differences to SAM on the same batches, and how many are above zero."""
    if base is None or not found["n"] or found["n"] != base["n"] or found is base:
        return "–"
    pairs = zip(found["values"], base["values"], strict=True)
    differences = [mine - theirs for mine, theirs in pairs]
    above = sum(value > 0 for value in differences)
    mean = spread(differences)
    sd = "" if mean["sd"] is None else f" ± {mean['sd']:.2f}"
    return f"{mean['mean']:+.2f}{sd}, {above} of {len(differences)} > 0"


def _caption(record: Mapping[str, Any]) -> str:
    model, settings = record["model"], record["settings"]
    batches = "1 batch" if record["batches"] == 1 else f"{record['batches']} batches"
    return (
        f"**{model['name']}** ({model['parameters']:,} weights, {model['weights']}; text: "
        f"{model['text']}): {batches} of {settings['batch_size']}, "
        f"{settings['precision']}, η = {settings['eta']:g}. {record['hardware']['processor']}, "
        f"torch {record['versions']['torch']}, seed {settings['seed']}."
    )


def _text(found: Mapping[str, Any], batches: int) -> str:
    if found["mean"] is None:
        return "–"
    # Cosines of almost 1 differ in what is missing.
    digits = 4 if found["mean"] > 0.99 and found["mean"] != 1 else 2  # noqa: PLR2004
    text = f"{found['mean']:.{digits}f}"
    if found["sd"] is not None:
        text += f" ± {found['sd']:.{digits}f}"
    return text if found["n"] == batches else f"{text} (n {found['n']})"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
