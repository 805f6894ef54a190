"""ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum, over google's rouge-score.

``rougeL`` is one longest common subsequence over the whole text;
``rougeLsum`` is the union over sentences, which is what ROUGE-1.5.5 and the
papers call ROUGE-L. They differ only where a text has several sentences, so
the way sentences are told apart belongs to the score and is in its signature.

Differs from ROUGE-1.5.5 with stemming: that one looks words up in WordNet's
exception lists before it stems. Without stemming the two agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from statistics import fmean
from typing import Any

from deltasam_fairseq.errors import UserError

VARIANTS = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_SENTENCE_END = re.compile(r"(?<=[.!?])[ \t]+(?=\S)")

#: How a text becomes lines of one sentence each.
SPLITTERS: dict[str, Callable[[str], str]] = {
    # The text's own line breaks; a line of a file has none, so it is one sentence.
    "newline": lambda text: text,
    # At white space after a full stop, an exclamation mark or a question mark.
    "sentences": lambda text: _SENTENCE_END.sub("\n", text),
}


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
    """

    scores: dict[str, RougeScore]
    n: int
    signature: str

    def as_json(self) -> dict[str, Any]:
        """Return the report as one flat object for JSON."""
        scores = {name: asdict(score) for name, score in self.scores.items()}
        return {**scores, "n": self.n, "signature": self.signature}


def rouge_scores(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    stemmer: bool = True,
    split: str = "newline",
) -> RougeReport:
    """Score texts against one reference each.

    Different numbers of texts, none at all, or a reference without words are
    errors for the user.

    Args:
        hypotheses: Generated texts. An empty one scores zero.
        references: What they should have been, in the same order.
        stemmer: Whether words are reduced by Porter's stemmer first.
        split: How sentences are told apart for ``rougeLsum``: ``newline`` or ``sentences``.

    Returns:
        Precision, recall and F-measure, averaged over the pairs.

    Example:
        >>> report = rouge_scores(["the cat sat"], ["the cat ran away"])
        >>> round(report.scores["rouge1"].precision, 2), report.scores["rouge1"].recall
        (66.67, 50.0)
    """
    _check(hypotheses, references, split)
    from rouge_score import rouge_scorer  # noqa: PLC0415 - brings nltk: slow to import

    splitter = SPLITTERS[split]
    scorer = rouge_scorer.RougeScorer(VARIANTS, use_stemmer=stemmer)
    pairs = [
        scorer.score(splitter(reference), splitter(hypothesis))
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    scores = {
        name: RougeScore(
            precision=100 * fmean(pair[name].precision for pair in pairs),
            recall=100 * fmean(pair[name].recall for pair in pairs),
            fmeasure=100 * fmean(pair[name].fmeasure for pair in pairs),
        )
        for name in VARIANTS
    }
    return RougeReport(scores, len(pairs), _signature(stemmer=stemmer, split=split))


def _check(hypotheses: Sequence[str], references: Sequence[str], split: str) -> None:
    if split not in SPLITTERS:
        raise UserError(f"unknown split {split!r}; known: {', '.join(SPLITTERS)}")
    if len(hypotheses) != len(references):
        raise UserError(
            f"{len(hypotheses)} hypotheses but {len(references)} references; "
            "line n of one must belong to line n of the other"
        )
    if not references:
        raise UserError("there is nothing to score: no hypotheses and no references")
    for number, reference in enumerate(references, start=1):
        if not reference.strip():
            raise UserError(f"reference {number} is empty; remove it and hypothesis {number}")


def _signature(*, stemmer: bool, split: str) -> str:
    return "|".join(
        (
            "rouge",
            "tool:rouge-score",
            f"version:{metadata.version('rouge-score')}",
            f"stemmer:{'porter' if stemmer else 'no'}",
            f"split:{split}",
            "lang:ascii",
        )
    )
