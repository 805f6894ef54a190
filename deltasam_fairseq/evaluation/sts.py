"""Semantic textual similarity in the "all" setting: one Spearman over a year's pooled pairs.

A year of SemEval's STS consists of several files (headlines, images, …). The
papers on sentence embeddings pool their pairs and take one rank correlation.
SentEval takes one for each file and then their mean, or the mean weighted by
size: other numbers, by several points. They are here for comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltasam_fairseq import __version__
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.lines import check_lengths, read_numbers
from deltasam_fairseq.evaluation.metrics import pearson, spearman


@dataclass(frozen=True)
class StsReport:
    """Scores of one year or data set, in percent.

    Args:
        spearman: Over all pairs, whichever file they are from: the number of the papers.
        pearson: Over all pairs.
        files: Spearman and number of pairs of each file, by its name.
        n: Number of pairs that have a gold score.
        unscored: Number of pairs that were left out for want of one.
    """

    spearman: float
    pearson: float
    files: dict[str, tuple[float, int]]
    n: int
    unscored: int

    @property
    def signature(self) -> str:
        """Setting, counts and version in one line."""
        return (
            f"sts|metric:spearman|setting:all|files:{len(self.files)}|unscored:{self.unscored}"
            f"|version:{__version__}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the report as one object for JSON."""
        values = [value for value, _ in self.files.values()]
        weighted = sum(value * n for value, n in self.files.values())
        return {
            "spearman": self.spearman,
            "pearson": self.pearson,
            "files": {name: {"spearman": value, "n": n} for name, (value, n) in self.files.items()},
            "spearman_mean_of_files": sum(values) / len(values),
            "spearman_weighted_mean_of_files": weighted / self.n,
            "n": self.n,
            "signature": self.signature,
        }


def sts_scores(files: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> StsReport:
    """Score similarities against gold scores.

    Args:
        files: By name: lines of predicted similarities (any scale, higher is more alike) and
            lines of gold scores. An empty gold line means that nobody scored the pair; it is
            left out, as STS15 and STS16 have it.

    Returns:
        The report.

    Raises:
        UserError: If lines do not belong together, are no numbers, or are constant; the
            message names the file and the line.

    Example:
        >>> report = sts_scores({"a": (["1", "2"], ["0", "5"]), "b": (["8", "9"], ["1", "4"])})
        >>> report.spearman, report.as_json()["spearman_mean_of_files"]
        (40.0, 100.0)
    """
    if not files:
        raise UserError("there is nothing to score: no files")
    pooled: tuple[list[float], list[float]] = ([], [])
    by_file: dict[str, tuple[float, int]] = {}
    unscored = 0
    for name, (predictions, gold) in files.items():
        try:
            check_lengths(predictions, gold, "predictions", "gold scores")
            similarities = read_numbers(predictions, "prediction")
            scores = read_numbers([line.strip() or "0" for line in gold], "gold score")
            kept = [row for row, line in enumerate(gold) if line.strip()]
            if not kept:
                raise UserError(
                    f"none of the {len(gold)} pairs has a gold score; leave the file out"
                )
            pair = [similarities[row] for row in kept], [scores[row] for row in kept]
            by_file[name] = (100 * spearman(*pair), len(kept))
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        unscored += len(gold) - len(kept)
        for side, values in zip(pooled, pair, strict=True):
            side.extend(values)
    return StsReport(
        spearman=100 * spearman(*pooled),
        pearson=100 * pearson(*pooled),
        files=by_file,
        n=len(pooled[0]),
        unscored=unscored,
    )
