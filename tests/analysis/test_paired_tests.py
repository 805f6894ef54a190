from itertools import product
from math import sqrt
from statistics import fmean

import numpy as np
import pytest

from deltasam_fairseq.analysis.paired_tests import compare_over_sentences
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.resampling import Resampling, randomization_test
from deltasam_fairseq.evaluation.summed_metrics import SUMMED, Array, summed_score

FEW = 200


def by_hand(metric: str, predictions: Array, others: Array, labels: Array) -> float:
    """Return the p-value over all swappings, in loops: the slow twin."""

    def difference(a: Array, b: Array) -> float:
        scores = (summed_score(metric, one, labels).mean() for one in (a, b))
        return float(next(scores) - next(scores))

    observed = abs(difference(predictions, others))
    found = []
    for swaps in product((False, True), repeat=len(labels)):
        a, b = np.where(swaps, others, predictions), np.where(swaps, predictions, others)
        found.append(abs(difference(a, b)) >= observed - 1e-9)
    return fmean(found)


@pytest.mark.parametrize("metric", SUMMED)
def test_the_test_over_sentences_is_that_over_all_swappings(metric: str) -> None:
    rng = np.random.default_rng(5)
    if metric == "pearson":
        labels = rng.uniform(0, 5, 9)
        better, worse = (labels + rng.normal(0, size, (3, 9)) for size in (0.5, 2.0))
    else:
        labels = rng.integers(2, size=9).astype(float)
        better, worse = (
            np.where(rng.random((3, 9)) < wrong, 1 - labels, labels) for wrong in (0.1, 0.4)
        )
    exact = by_hand(metric, better, worse, labels)
    found = compare_over_sentences(metric, better, worse, labels, trials=20_000)
    assert 0 < exact < 0.5
    assert found.p_value == pytest.approx(exact, abs=0.01)
    assert found.low <= found.difference <= found.high


def test_for_accuracy_it_is_the_randomization_of_scores_averaged_over_seeds() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(3, size=60).astype(float)
    first, second = (rng.integers(3, size=(4, 60)).astype(float) for _ in range(2))
    first[:, :12] = labels[:12]
    found = compare_over_sentences("accuracy", first, second, labels, resamples=FEW)
    columns = [((one == labels).mean(axis=0)[:, None]).tolist() for one in (first, second)]
    (expected,) = randomization_test(columns[0], columns[1], Resampling(10_000))
    assert found.p_value == pytest.approx(expected, abs=0.01)


def test_the_interval_is_the_normal_one_for_many_sentences() -> None:
    rng = np.random.default_rng(0)
    labels = np.ones(1000)
    first, second = ((rng.random((1, 1000)) < right).astype(float) for right in (0.8, 0.7))
    found = compare_over_sentences("accuracy", first, second, labels, trials=FEW, resamples=4000)
    half = 196 * (first - second).std() / sqrt(1000)
    assert found.difference == pytest.approx(100 * (first - second).mean())
    assert (found.low, found.high) == pytest.approx(
        (found.difference - half, found.difference + half), abs=0.2
    )


def test_equal_models_do_not_differ_and_the_sign_is_that_of_the_first() -> None:
    labels = np.arange(20.0)
    good, bad = labels[None] + 0.1, labels[None][:, ::-1].copy()
    same = compare_over_sentences("pearson", good, good, labels, trials=FEW, resamples=FEW)
    assert (same.difference, same.p_value) == (0, 1)
    found = compare_over_sentences("pearson", good, bad, labels, trials=FEW, resamples=FEW)
    assert found.difference == pytest.approx(200)
    assert found.p_value == 1 / 201


def test_seeds_of_a_sentence_are_swapped_together() -> None:
    """Copies of one model are no further evidence: p stays what it is with one seed."""
    labels = np.ones(12)
    first, second = np.ones((1, 12)), np.ones((1, 12))
    second[0, :4] = 0
    p_values = [
        compare_over_sentences(
            "accuracy", first.repeat(n, axis=0), second.repeat(n, axis=0), labels, resamples=FEW
        ).p_value
        for n in (1, 5)
    ]
    assert p_values[0] == p_values[1] == pytest.approx(2 / 2**4, abs=0.01)


def test_blocks_of_draws_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    labels = rng.uniform(0, 5, 30)
    first, second = (labels + rng.normal(0, size, (2, 30)) for size in (1.0, 1.5))
    whole = compare_over_sentences("pearson", first, second, labels)
    monkeypatch.setattr("deltasam_fairseq.evaluation.resampling._BLOCK", 30 * 777)
    parts = compare_over_sentences("pearson", first, second, labels)
    assert parts.p_value == pytest.approx(whole.p_value, abs=0.01)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.01)


def test_metrics_that_are_no_sums() -> None:
    with pytest.raises(UserError, match="no test over sentences for spearman; known: accuracy"):
        compare_over_sentences("spearman", np.ones((1, 2)), np.ones((1, 2)), np.ones(2))
