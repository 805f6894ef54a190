"""Whether two methods differ: over seeds, and over sentences with the models as they are.

The two ask different things. Over seeds: would other seeds show a difference on these
sentences? Over sentences: would other sentences show one between these models?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from deltasam_fairseq.analysis.summed_metrics import SUMMED, Array
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.resampling import (
    RESAMPLES,
    TRIALS,
    Resampling,
    randomization_test,
)

#: With more differences the signs are drawn at random; these have 65,536 patterns.
MOST_EXACT = 16
#: Numbers in one block of draws: 64 MB.
_BLOCK = 8_000_000


def sign_flip_test(differences: Sequence[float]) -> float:
    """Test whether paired differences have a mean of zero; two-sided.

    If the methods are equal, each difference is as likely to have the other sign. The p-value
    is the share of sign patterns whose mean is as far from zero as the observed one or
    farther: of all patterns for up to ``MOST_EXACT`` differences, else of random ones.

    Args:
        differences: One per seed.

    Returns:
        The p-value, never below :func:`least_p`.

    Raises:
        UserError: If there is no difference.

    Example:
        >>> sign_flip_test([1.0, 2.0, 3.0])
        0.25
    """
    n = len(differences)
    if not n:
        raise UserError("there is nothing to test: the methods share no seed")
    if n > MOST_EXACT:
        columns = [[value] for value in differences]
        return randomization_test(columns, [[0.0]] * n, Resampling(TRIALS))[0]
    values = np.asarray(differences, dtype=np.float64)
    flipped = np.arange(2**n)[:, None] >> np.arange(n) & 1
    sums = np.abs((1.0 - 2.0 * flipped) @ values)
    # Sums in another order differ in the last digits; equal must count as equal.
    return float(np.mean(sums >= abs(values.sum()) - 1e-9 * np.abs(values).sum()))


def least_p(n: int) -> float:
    """Return the smallest p-value that the sign-flip test of n differences can have.

    Args:
        n: At least one.

    Returns:
        Two of all patterns: all signs as observed, and all the other way. With random
        patterns, the observed one among them.

    Example:
        >>> least_p(5) == 1 / 16
        True
    """
    return float(2.0 ** (1 - n)) if n <= MOST_EXACT else 1 / (TRIALS + 1)


@dataclass(frozen=True)
class OverSentences:
    """How two methods differ over the sentences of a split.

    Args:
        difference: Of the metric, mean over seeds, in percent.
        low: Lower end of the 95 % bootstrap interval.
        high: Upper end.
        p_value: Of the randomization test, two-sided.
    """

    difference: float
    low: float
    high: float
    p_value: float


def compare_over_sentences(
    metric: str,
    predictions: Array,
    others: Array,
    labels: Array,
    *,
    trials: Resampling | None = None,
    resamples: Resampling | None = None,
) -> OverSentences:
    """Compare the mean over seeds of a metric between two methods, over sentences.

    Paired approximate randomization (Noreen 1989): each trial swaps a sentence's predictions
    between the methods or does not, for all seeds at once, because the models of one method
    err on the same sentences. Beside it the percentile bootstrap: sentences are drawn with
    replacement, the same ones for all models.

    Args:
        metric: A key of ``SUMMED``.
        predictions: Of one method: class ids or scores, of shape (seeds, sentences).
        others: Of the other, of the same shape.
        labels: The true ones, of shape (sentences,).
        trials: Of the randomization; none is ``TRIALS``.
        resamples: Of the bootstrap; none is ``RESAMPLES``.

    Returns:
        Difference, interval and p-value, which is never below ``1 / (trials + 1)``.

    Raises:
        UserError: If the metric is no function of sums over sentences.
    """
    if metric not in SUMMED:
        raise UserError(f"no test over sentences for {metric}; known: {', '.join(SUMMED)}")
    trials, resamples = trials or Resampling(TRIALS), resamples or Resampling(RESAMPLES)
    chosen, n = SUMMED[metric], len(labels)
    first, second = chosen.parts(predictions, labels), chosen.parts(others, labels)

    def difference(sums: Array, other_sums: Array) -> Array:
        return np.asarray((chosen.value(sums) - chosen.value(other_sums)).mean(axis=-1))

    total, other_total = first.sum(axis=0), second.sum(axis=0)
    observed = float(difference(total, other_total))
    rng = np.random.default_rng(trials.seed)
    hits = 0
    for size in _blocks(trials.draws, n):
        swaps = rng.integers(2, size=(size, n)).astype(np.float64)
        moved = np.tensordot(swaps, second - first, axes=1)
        found = difference(total + moved, other_total - moved)
        hits += int((np.abs(found) >= abs(observed) - 1e-9).sum())  # rounding is below that
    rng = np.random.default_rng(resamples.seed)
    drawn = []
    for size in _blocks(resamples.draws, n):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)
        sums = (np.tensordot(counts, parts, axes=1) for parts in (first, second))
        drawn.append(difference(*sums))
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975]).tolist()
    return OverSentences(observed, low, high, (hits + 1) / (trials.draws + 1))


def _blocks(draws: int, n: int) -> Iterator[int]:
    """Yield the sizes of blocks of draws over n sentences that fit into memory."""
    size = max(1, _BLOCK // n)
    for begin in range(0, draws, size):
        yield min(size, draws - begin)
