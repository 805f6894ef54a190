"""BLEU, chrF and TER, as sacreBLEU computes them, with its signatures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.lines import check_lengths, check_references
from deltasam_fairseq.registry import nearest

#: sacreBLEU's tokenizers for BLEU that need no further download.
TOKENIZERS = ("13a", "intl", "char", "zh", "none")


@dataclass(frozen=True)
class CorpusScore:
    """One score of a whole corpus.

    Args:
        score: In percent; for TER the lower the better, and it can exceed 100.
        signature: sacreBLEU's, with its version.
    """

    score: float
    signature: str


@dataclass(frozen=True)
class BleuReport:
    """``bleu``, ``chrf`` and ``ter`` of ``n`` hypotheses."""

    scores: dict[str, CorpusScore]
    n: int

    def as_json(self) -> dict[str, Any]:
        """Return the report as one object for JSON."""
        return {**{name: asdict(score) for name, score in self.scores.items()}, "n": self.n}


def bleu_scores(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenizer: str = "13a",
    lowercase: bool = False,
) -> BleuReport:
    """Score a corpus.

    An empty hypothesis lowers the score like any other bad one.

    Args:
        hypotheses: Detokenized translations.
        references: One or more streams of references, each as long as ``hypotheses``. A line
            that is empty or white space is absent from its stream; the signature says
            ``nrefs:var`` where lines then have different numbers of references.
        tokenizer: Of BLEU; one of :data:`TOKENIZERS`.
        lowercase: Whether case is ignored, by all three.

    Returns:
        BLEU, chrF and TER.

    Raises:
        UserError: If the tokenizer is unknown, there is nothing to score, streams have unequal
            lengths, or a line is blank in all of them.

    Example:
        >>> report = bleu_scores(["the cat sat on the mat"], [["the cat sat on a mat"]])
        >>> {name: round(found.score, 1) for name, found in report.scores.items()}
        {'bleu': 53.7, 'chrf': 72.1, 'ter': 16.7}
    """
    if tokenizer not in TOKENIZERS:
        raise UserError(f"unknown tokenizer {tokenizer!r}{nearest(tokenizer, TOKENIZERS)}")
    if not references:
        raise UserError("there is nothing to score: no hypotheses or no references")
    for number, stream in enumerate(references, start=1):
        check_lengths(hypotheses, stream, "hypotheses", f"lines in reference file {number}")
    check_references(zip(*references, strict=True))
    from sacrebleu.metrics.bleu import BLEU  # noqa: PLC0415 - slow to import
    from sacrebleu.metrics.chrf import CHRF  # noqa: PLC0415
    from sacrebleu.metrics.ter import TER  # noqa: PLC0415

    metrics: dict[str, Any] = {
        "bleu": BLEU(tokenize=tokenizer, lowercase=lowercase),
        "chrf": CHRF(lowercase=lowercase),
        "ter": TER(case_sensitive=not lowercase),
    }
    # sacreBLEU reads "" as a reference of zero words, the closest in length to many a
    # hypothesis; None is its word for a reference that is not there.
    streams = [[text if text.strip() else None for text in stream] for stream in references]
    scores = {}
    for name, metric in metrics.items():
        score = metric.corpus_score(list(hypotheses), streams).score
        scores[name] = CorpusScore(score, f"{name}|{metric.get_signature()}")
    return BleuReport(scores, len(hypotheses))
