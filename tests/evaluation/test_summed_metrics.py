import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasam_fairseq.evaluation.metrics import CLASS_METRICS, NUMBER_METRICS
from deltasam_fairseq.evaluation.summed_metrics import summed_score


@settings(max_examples=50)
@given(st.integers(1, 3), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_summed_metrics_are_those_of_the_evaluation(seeds: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes, labels = rng.integers(2, size=(seeds, n)), rng.integers(2, size=n)
    for name in ("accuracy", "matthews"):
        found = summed_score(name, classes.astype(float), labels.astype(float))
        expected = [
            100 * CLASS_METRICS[name](list(map(str, row)), list(map(str, labels)))
            for row in classes
        ]
        assert found == pytest.approx(expected)
    numbers, gold = rng.uniform(0, 5, size=(seeds, n)), rng.uniform(0, 5, size=n)
    expected = [100 * NUMBER_METRICS["pearson"](row.tolist(), gold.tolist()) for row in numbers]
    assert summed_score("pearson", numbers, gold) == pytest.approx(expected)


def test_more_than_two_classes() -> None:
    predictions, labels = np.array([[0.0, 1, 2, 2]]), np.array([0.0, 1, 2, 1])
    assert summed_score("accuracy", predictions, labels) == pytest.approx([75])


def test_a_constant_in_a_draw_is_no_error() -> None:
    assert summed_score("pearson", np.ones((1, 3)), np.arange(3.0)) == pytest.approx([0])
    assert summed_score("matthews", np.ones((1, 3)), np.ones(3)) == pytest.approx([0])
