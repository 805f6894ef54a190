"""Agreement of predictions with labels, in plain Python; all scores are fractions.

Where F1 or Matthews' coefficient is 0 divided by 0 it is 0, as in scikit-learn. A correlation
with a constant is an error for the user: a model that gives every pair the same score has not
learnt, and a table should not say 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import fsum, sqrt
from statistics import fmean

from deltasam_fairseq.errors import UserError


def accuracy(predictions: Sequence[str], labels: Sequence[str]) -> float:
    """Return the share of equal entries, of one or more.

    Example:
        >>> accuracy(["a", "b"], ["a", "c"])
        0.5
    """
    pairs = list(zip(predictions, labels, strict=True))
    return sum(prediction == label for prediction, label in pairs) / len(pairs)


def f1(predictions: Sequence[str], labels: Sequence[str], *, positive: str = "1") -> float:
    """Return the F-measure of the positive class; 0 if it is neither predicted nor there.

    Example:
        >>> f1(["1", "1", "0"], ["1", "0", "0"])
        0.6666666666666666
    """
    true_positive, false_positive, false_negative, _ = _confusion(predictions, labels, positive)
    total = 2 * true_positive + false_positive + false_negative
    return 2 * true_positive / total if total else 0.0


def matthews(predictions: Sequence[str], labels: Sequence[str], *, positive: str = "1") -> float:
    """Return Matthews' correlation coefficient of the positive class and all others.

    It is 0 if one class alone is predicted or alone is there.

    Example:
        >>> matthews(["1", "1", "0", "0"], ["1", "0", "0", "0"])
        0.5773502691896258
    """
    tp, fp, fn, tn = _confusion(predictions, labels, positive)
    denominator = sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return (tp * tn - fp * fn) / denominator if denominator else 0.0


def _confusion(
    predictions: Sequence[str], labels: Sequence[str], positive: str
) -> tuple[int, int, int, int]:
    """Count true positives, false positives, false negatives and true negatives."""
    pairs = [(p == positive, t == positive) for p, t in zip(predictions, labels, strict=True)]
    return (
        pairs.count((True, True)),
        pairs.count((True, False)),
        pairs.count((False, True)),
        pairs.count((False, False)),
    )


def pearson(predictions: Sequence[float], gold: Sequence[float]) -> float:
    """Return the linear correlation coefficient of finite numbers.

    If one side is constant, that is an error for the user, which names the constant.

    Example:
        >>> round(pearson([1.0, 2.0, 4.0], [1.0, 2.0, 3.0]), 4)
        0.982
    """
    x = _standardized(predictions, "predictions")
    y = _standardized(gold, "gold scores")
    found = fsum(a * b for a, b in zip(x, y, strict=True))
    return max(-1.0, min(1.0, found / sqrt(fsum(a * a for a in x) * fsum(b * b for b in y))))


def _standardized(values: Sequence[float], name: str) -> list[float]:
    """Return distances from the mean, the largest of which is one: no square overflows."""
    if len(set(values)) < 2:
        what = f"all {len(values)} {name} are {values[0]:g}" if values else f"no {name}"
        raise UserError(f"{what}: a correlation with a constant is not defined")
    largest = max(map(abs, values))
    scaled = [value / largest for value in values]
    mean = fmean(scaled)
    widest = max(abs(value - mean) for value in scaled)
    return [(value - mean) / widest for value in scaled]


def spearman(predictions: Sequence[float], gold: Sequence[float]) -> float:
    """Return the rank correlation coefficient; equal values share the mean of their ranks.

    Constants are errors, as for :func:`pearson`.

    Example:
        >>> spearman([1.0, 2.0, 40.0], [1.0, 2.0, 3.0])
        1.0
    """
    if len(set(predictions)) < 2 or len(set(gold)) < 2:
        return pearson(predictions, gold)  # whose message names the value, not its rank
    return pearson(_ranks(predictions), _ranks(gold))


def _ranks(values: Sequence[float]) -> list[float]:
    counts = Counter(values)
    ranks, before = {}, 0
    for value in sorted(counts):
        ranks[value] = before + (counts[value] + 1) / 2
        before += counts[value]
    return [ranks[value] for value in values]


CLASS_METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
}
NUMBER_METRICS: dict[str, Callable[[Sequence[float], Sequence[float]], float]] = {
    "pearson": pearson,
    "spearman": spearman,
}
