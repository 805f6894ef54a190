"""ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum, over google's rouge-score.

``rougeL`` is one longest common subsequence over the whole text;
``rougeLsum`` is the union over sentences, which is what ROUGE-1.5.5 and the
papers call ROUGE-L. They differ only where a text has several sentences, so
the way sentences are told apart belongs to the score and is in its signature.

With stemming rouge-score and ROUGE-1.5.5 differ, since the latter looks words up
in WordNet's exception lists first; ``like="rouge-1.5.5"`` gives its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from deltasam_fairseq import __version__
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.engines import MEASURES, PROGRAMS, VARIANTS, make_engine
from deltasam_fairseq.evaluation.lines import check_lengths, check_references
from deltasam_fairseq.evaluation.resampling import (
    Resampling,
    bootstrap_interval,
    randomization_test,
)
from deltasam_fairseq.evaluation.sentences import (
    SPLITTERS,
    TOKENIZATIONS,
    run_together,
    split_and_tokenize,
)
from deltasam_fairseq.evaluation.stemmer155 import WORDNET_2_0

T = TypeVar("T")

__all__ = [
    "MEASURES",
    "PROGRAMS",
    "SPLITTERS",
    "TOKENIZATIONS",
    "VARIANTS",
    "RougeReport",
    "RougeScore",
    "rouge_scores",
]


@dataclass(frozen=True)
class RougeScore:
    """Means over all pairs, in percent.

    Args:
        precision: Share of the hypothesis that the reference has.
        recall: Share of the reference that the hypothesis has.
        fmeasure: Mean over pairs of their harmonic mean, not the harmonic mean of the means.
    """

    precision: float
    recall: float
    fmeasure: float


@dataclass(frozen=True)
class RougeReport:
    """Scores with everything that one has to know to compare them.

    Args:
        scores: By variant: ``rouge1``, ``rouge2``, ``rougeL``, ``rougeLsum``.
        n: Number of pairs.
        signature: Tool, version and settings in one line.
        rows: Scores of each pair in percent: precision, recall and F of the first variant,
            then of the second, and so on.
        unsplit: Which of ``hypotheses`` and ``references`` have several sentences in many a
            line, whatever told them apart: ``rougeLsum`` takes them for one and is too low.
    """

    scores: dict[str, RougeScore]
    n: int
    signature: str
    rows: list[list[float]] = field(repr=False, compare=False)
    unsplit: tuple[str, ...] = field(default=(), compare=False)

    def as_json(self) -> dict[str, Any]:
        """Return the report as one flat object for JSON, without the single pairs."""
        means = {name: vars(score) for name, score in self.scores.items()}
        return {**means, "n": self.n, "signature": self.signature}

    def warning(self, option: str = "split") -> str:
        """Say what makes ``rougeLsum`` too low, and what to do.

        Args:
            option: What the reader sets the splitter with.

        Returns:
            One line for a person; empty if there is nothing to say.
        """
        if not self.unsplit:
            return ""
        return (
            f"many {' and '.join(self.unsplit)} have several sentences in a line, which ROUGE-Lsum "
            "takes for one: it can be 10 points too low. Tell them apart with "
            f"{option} sentences, or {option} ptb for PTB-tokenized text"
        )

    def examples(self) -> list[dict[str, dict[str, float]]]:
        """Return the scores of each pair, by variant and measure, in percent."""
        return [_named(row) for row in self.rows]

    def intervals(self, resampling: Resampling) -> dict[str, dict[str, tuple[float, float]]]:
        """Return both ends of 95 % bootstrap confidence intervals of the means, in percent."""
        return _named(bootstrap_interval(self.rows, resampling))

    def compare(
        self, other: RougeReport, resampling: Resampling
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Test whether this system differs from another on the same references.

        Args:
            other: The other system's report.
            resampling: Number of random swappings, and seed.

        Returns:
            By variant and measure: ``difference`` (this minus the other, in percentage
            points) and ``p`` of a paired approximate randomization test.

        Raises:
            UserError: If the two were scored on different numbers of pairs or in different ways.
        """
        if (self.n, self.signature) != (other.n, other.signature):
            raise UserError(
                f"not comparable: {self.n} pairs, {self.signature}, and {other.n} pairs, "
                f"{other.signature}"
            )
        p_values = randomization_test(self.rows, other.rows, resampling)
        columns = zip(_means(self.rows), _means(other.rows), p_values, strict=True)
        return _named([{"difference": mine - its, "p": p} for mine, its, p in columns])


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(column) for column in zip(*rows, strict=True)]


def _named(columns: Sequence[T]) -> dict[str, dict[str, T]]:
    """Give the columns of a row their variants and measures."""
    width = len(MEASURES)
    return {
        name: dict(zip(MEASURES, columns[start : start + width], strict=True))
        for start, name in zip(range(0, len(columns), width), VARIANTS, strict=True)
    }


def rouge_scores(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    stemmer: bool = True,
    split: str = "newline",
    tokenization: str = "none",
    like: str = "rouge-score",
    exceptions: Path | None = WORDNET_2_0,
) -> RougeReport:
    """Score texts against one reference each.

    A text without an ASCII letter or digit has no words for ROUGE: its pair scores
    zero, as in the original program.

    Args:
        hypotheses: Generated texts. An empty one scores zero.
        references: What they should have been, in the same order.
        stemmer: Whether words are reduced to their stems first.
        split: How sentences are told apart for ``rougeLsum``; a key of :data:`SPLITTERS`.
        tokenization: How sentences are cut into words; a key of :data:`TOKENIZATIONS`.
        like: What the numbers agree with: ``rouge-score`` or ``rouge-1.5.5``.
        exceptions: With ``rouge-1.5.5``, the folder of a WordNet's exception lists; WordNet
            2.0, as it had, when left out; none for empty lists.

    Returns:
        Precision, recall and F-measure, averaged over the pairs.

    Refusals:
        ``UserError`` if there are different numbers of texts or none, a reference is blank, or a
        name is unknown.

    Example:
        >>> report = rouge_scores(["the cat sat"], ["the cat ran away"])
        >>> round(report.scores["rouge1"].precision, 2), report.scores["rouge1"].recall
        (66.67, 50.0)
    """
    check_lengths(hypotheses, references, "hypotheses", "references")
    check_references((reference,) for reference in references)
    engine = make_engine(like, stemmer=stemmer, exceptions=exceptions)

    def ready(text: str) -> str:
        return split_and_tokenize(text, split=split, tokenization=tokenization)

    texts = {
        "hypotheses": [ready(text) for text in hypotheses],
        "references": [ready(text) for text in references],
    }
    found = (engine.score(*pair) for pair in zip(*texts.values(), strict=True))
    rows = [[100 * value for name in VARIANTS for value in pair[name]] for pair in found]
    scores = {name: RougeScore(**means) for name, means in _named(_means(rows)).items()}
    settings = {"split": split, "tok": tokenization, "lang": "ascii"}
    signature = _signature(like, engine.signature, settings)
    unsplit = tuple(side for side, lines in texts.items() if run_together(lines))
    return RougeReport(scores, len(rows), signature, rows, unsplit)


def _signature(like: str, stemming: Mapping[str, str], settings: Mapping[str, str]) -> str:
    tool = {"tool": "rouge-score", "version": metadata.version("rouge-score"), "like": like}
    versions = {"nltk": metadata.version("nltk"), "deltasam": __version__}
    fields = {**tool, **stemming, **settings, **versions}
    return "|".join(["rouge", *(f"{name}:{value}" for name, value in fields.items())])
