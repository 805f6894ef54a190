"""A measurement of the probes as one JSON object."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.analysis.probe_precision import Findings
from deltasam_fairseq.analysis.probe_precision_load import Subject
from deltasam_fairseq.core.checks import positive
from deltasam_fairseq.core.weights import usable
from deltasam_fairseq.errors import UserError, at_least
from deltasam_fairseq.evaluation.metrics import spearman

SCHEMA = 1


@dataclass(frozen=True)
class Settings:
    """What is measured, beside the model.

    Args:
        rho: Radii.
        eta: Floor under the slope, nats.
        batches: How many.
        sentences: In a batch.
        tokens: In a sentence, where sentences are drawn at random.
        tune: Updates before, where the model is pretrained.
        seed: Of everything drawn.
        threads: Threads of one operator.
        device: ``cpu`` or ``cuda``.
        dropout: Whether the rows with dropout are measured too.
        minutes: After which no further batch is probed; 0: no limit.

    Raises:
        UserError: If a number is outside its range.
    """

    rho: tuple[float, ...] = (0.01, 0.02, 0.05)
    eta: float = 1e-4
    batches: int = 20
    sentences: int = 16
    tokens: int = 48
    tune: int = 40
    seed: int = 1
    threads: int = 2
    device: str = "cpu"
    dropout: bool = True
    minutes: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        for name, least in (
            ("batches", 1),
            ("sentences", 2),
            ("tokens", 1),
            ("tune", 0),
            ("seed", 0),
            ("threads", 1),
        ):
            at_least(f"--{name}", getattr(self, name), least)
        try:
            positive(self.eta, "--eta")
            for radius in self.rho:
                positive(radius, "--rho")
        except ValueError as error:
            raise UserError(str(error)) from None
        at_least("--minutes", self.minutes, 0)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: torch finds no GPU that it can use")

    def command(self, source: str) -> str:
        """Return the command line that measures this again.

        Args:
            source: The arguments that name the model and the text.

        Returns:
            One line.
        """
        radii = ",".join(f"{radius:g}" for radius in self.rho)
        return (
            f"deltasam analyse probe-precision {source} --rho {radii} --eta {self.eta:g} "
            f"--batches {self.batches} --sentences {self.sentences} --tokens {self.tokens} "
            f"--tune {self.tune} --seed {self.seed} --threads {self.threads} "
            f"--device {self.device}{'' if self.dropout else ' --no-dropout'} --json"
        )


def record_of(
    subject: Subject,
    found: Sequence[Findings],
    settings: Settings,
    *,
    command: str,
    not_run: Sequence[str],
    around: Mapping[str, Any],
) -> dict[str, Any]:
    """Sum up what was measured.

    Args:
        subject: What was probed.
        found: One per precision and radius.
        settings: Of the measurement.
        command: What runs it again.
        not_run: Names of precisions that the device cannot run.
        around: Date, commit, hardware and versions.

    Returns:
        Only what JSON knows.
    """
    model, batches = subject.model, subject.batches
    lengths = [int((~batch.padding).sum()) / len(batch.labels) for batch in batches]
    return {
        "analysis": "probe-precision",
        "schema": SCHEMA,
        "command": command,
        "settings": {**asdict(settings), "rho": list(settings.rho)},
        **around,
        "model": {
            **subject.about,
            "parameters": sum(p.numel() for p in model.parameters()),
            "mean_tokens": _rounded(statistics.fmean(lengths)),
        },
        "not_run": list(not_run),
        "cells": [_cell(one, settings.eta) for one in found],
    }


def _cell(found: Findings, eta: float) -> dict[str, Any]:
    bends, slopes = torch.cat(found.bends), torch.cat(found.slopes)
    pairs = list(zip(found.weights, found.references, strict=True))
    ranks = [rank for mine, theirs in pairs if (rank := rank_correlation(mine, theirs)) is not None]
    realised = found.realised
    return {
        "precision": found.precision.name,
        "rho": found.rho,
        "sentences": bends.numel(),
        "zero_numerators": _rounded((bends == 0).double().mean().item()),
        "median_numerator": _rounded(bends.nanmedian().item()),
        "median_denominator": _rounded(slopes.nanmedian().item()),
        "floored": _rounded((slopes < eta).double().mean().item()),
        "rank": {
            "n": len(ranks),
            "mean": _rounded(statistics.fmean(ranks)) if ranks else None,
            "sd": _rounded(statistics.stdev(ranks)) if len(ranks) > 1 else None,
            "values": [round(rank, 4) for rank in ranks],
        },
        "batches": len(pairs),
        "all_zero_batches": sum(not bool(mine.any()) for mine, _ in pairs),
        "unusable_batches": sum(not usable(mine) for mine, _ in pairs),
        "realised": None
        if realised is None
        else {"share": _rounded(realised.share), "cosine": _rounded(realised.cosine)},
    }


def rank_correlation(weights: Tensor, reference: Tensor) -> float | None:
    """Return Spearman's rank correlation of two weightings of a batch.

    Args:
        weights: Shape ``(N,)``.
        reference: Shape ``(N,)``.

    Returns:
        The correlation; ``None`` where it has no meaning, because all weights
        are the same or one is not finite.
    """
    for values in (weights, reference):
        if not torch.isfinite(values).all() or len(set(values.tolist())) < 2:
            return None
    return spearman(weights.tolist(), reference.tolist())


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
