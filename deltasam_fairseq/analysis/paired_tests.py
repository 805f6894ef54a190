"""Two methods compared over the sentences of a split, with the models as they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.resampling import (
    RESAMPLES,
    TRIALS,
    Resampling,
    bootstrap_interval,
    draw_counts,
    randomization_test,
)
from deltasam_fairseq.evaluation.summed_metrics import SUMMED, Array


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
    trials: int = TRIALS,
    resamples: int = RESAMPLES,
) -> OverSentences:
    """Return how the mean over seeds of a metric differs between two methods.

    A sentence is drawn or swapped for all seeds at once, because the models of one method err on
    the same sentences.

    Args:
        metric: A key of ``SUMMED``.
        predictions: Of one method: class ids or scores, of shape (seeds, sentences).
        others: Of the other, of the same shape.
        labels: The true ones, of shape (sentences,).
        trials: Draws of the randomization.
        resamples: Draws of the bootstrap.

    Raises:
        UserError: If the metric is no function of sums over sentences.
    """
    if metric not in SUMMED:
        raise UserError(f"no test over sentences for {metric}; known: {', '.join(SUMMED)}")
    chosen = SUMMED[metric]
    first, second = chosen.parts(predictions, labels), chosen.parts(others, labels)

    def mean_over_seeds(sums: Array) -> Array:
        return np.asarray(chosen.value(sums).mean(axis=-1))

    def difference(sums: Array) -> Array:
        by_seed = chosen.value(sums[..., 0, :, :]) - chosen.value(sums[..., 1, :, :])
        return np.asarray(by_seed.mean(axis=-1))

    both = np.stack([first, second], axis=1)  # (sentences, methods, seeds, parts)
    ((low, high),) = bootstrap_interval(both, Resampling(resamples), difference, draw=draw_counts)
    (p_value,) = randomization_test(first, second, Resampling(trials), mean_over_seeds)
    return OverSentences(float(difference(both.sum(axis=0))), low, high, p_value)
