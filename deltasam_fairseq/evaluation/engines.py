"""Two ways to score one pair: rouge-score as it is, and rouge-score made to agree with ROUGE-1.5.5.

The second differs from the first in three things:

* words are reduced by :class:`~deltasam_fairseq.evaluation.stemmer155.Stemmer155`;
* only A to Z become lower case, since the Perl program reads bytes: for Python ``K`` (Kelvin)
  becomes ``k`` and ``İ`` becomes ``i`` with a dot above, which would be letters that count;
* precision and recall are rounded to five decimals, F is computed from the rounded ones and
  rounded too, as the program prints them.

It has one ROUGE-L, the union over sentences; ``rougeL`` and ``rougeLsum`` are both that.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.stemmer155 import WORDNET_2_0, Stemmer155, read_exceptions
from deltasam_fairseq.registry import nearest

VARIANTS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
MEASURES = ("precision", "recall", "fmeasure")
#: What scores can agree with.
PROGRAMS = ("rouge-score", "rouge-1.5.5")

#: Precision, recall and F of one pair by variant, as fractions.
PairScores = dict[str, tuple[float, float, float]]

_ASCII_LOWER = str.maketrans({chr(code): chr(code + 32) for code in range(ord("A"), ord("Z") + 1)})
_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Engine:
    """How a pair is scored.

    Args:
        score: From hypothesis and reference, one sentence per line, to scores.
        signature: Its settings by name, in the order of the signature.
    """

    score: Callable[[str, str], PairScores]
    signature: Mapping[str, str]


class Tokenizer155:
    """Words as ROUGE-1.5.5 has them; fits rouge-score's tokenizer hook."""

    def __init__(self, stemmer: Stemmer155 | None) -> None:
        self._stem = lru_cache(maxsize=2**16)(stemmer.stem) if stemmer else None

    def tokenize(self, text: str) -> list[str]:
        """Return the runs of ASCII letters and digits of a text, in lower case and reduced.

        Example:
            >>> Tokenizer155(None).tokenize("The U.K.'s Café-bar, 3.5 m")
            ['the', 'u', 'k', 's', 'caf', 'bar', '3', '5', 'm']
        """
        words = _WORD.findall(text.translate(_ASCII_LOWER))
        return [self._stem(word) for word in words] if self._stem else words


def rouge_score_engine(*, stemmer: bool) -> Engine:
    """Return rouge-score as it is, whose stemmer is NLTK's variant of Porter's."""
    from rouge_score import rouge_scorer  # noqa: PLC0415 - brings nltk: slow to import

    scorer = rouge_scorer.RougeScorer(VARIANTS, use_stemmer=stemmer)

    def score(hypothesis: str, reference: str) -> PairScores:
        found = scorer.score(reference, hypothesis)
        return {name: tuple(map(float, found[name])) for name in VARIANTS}  # type: ignore[misc]

    return Engine(score, {"stemmer": "porter" if stemmer else "no"})


def rouge_155_engine(*, stemmer: bool, exceptions: Path | None = WORDNET_2_0) -> Engine:
    """Return rouge-score made to agree with ROUGE-1.5.5.

    Args:
        stemmer: Whether words are reduced, the program's option ``-m``.
        exceptions: Folder of a WordNet's exception lists; none for an empty list, which is
            what the copy of ROUGE-1.5.5 in files2rouge has.

    Returns:
        The engine; its signature has the number of exceptions and a hash of them.
    """
    from rouge_score import rouge_scorer  # noqa: PLC0415 - brings nltk: slow to import

    words = read_exceptions(exceptions) if stemmer and exceptions else {}
    tokenizer = Tokenizer155(Stemmer155(words) if stemmer else None)
    scorer = rouge_scorer.RougeScorer(("rouge1", "rouge2", "rougeLsum"), tokenizer=tokenizer)

    def score(hypothesis: str, reference: str) -> PairScores:
        found = {name: _rounded(one) for name, one in scorer.score(reference, hypothesis).items()}
        return {name: found.get(name, found["rougeLsum"]) for name in VARIANTS}

    settings = {"stemmer": "rouge-1.5.5" if stemmer else "no"}
    return Engine(score, settings | ({"exceptions": _digest(words)} if stemmer else {}))


def _rounded(score: Any) -> tuple[float, float, float]:
    precision, recall = (float(f"{value:.5f}") for value in (score.precision, score.recall))
    total = 0.5 * precision + 0.5 * recall
    return precision, recall, float(f"{precision * recall / total:.5f}") if total > 0 else 0.0


def _digest(words: Mapping[str, str]) -> str:
    if not words:
        return "none"
    text = "".join(f"{word} {base}\n" for word, base in sorted(words.items()))
    return f"{len(words)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def make_engine(like: str, *, stemmer: bool, exceptions: Path | None) -> Engine:
    """Return the engine that agrees with a program of :data:`PROGRAMS`.

    Raises:
        UserError: If the name is unknown, or rouge-score is given lists.
    """
    if like not in PROGRAMS:
        raise UserError(f"unknown program {like!r}{nearest(like, PROGRAMS)}")
    if like == "rouge-1.5.5":
        return rouge_155_engine(stemmer=stemmer, exceptions=exceptions)
    if exceptions != WORDNET_2_0:
        raise UserError("rouge-score has no exception lists; choose others with --like rouge-1.5.5")
    return rouge_score_engine(stemmer=stemmer)
