import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.metrics import accuracy, f1, matthews, pearson, spearman

classes = st.lists(st.tuples(st.sampled_from("01"), st.sampled_from("01")), min_size=1, max_size=30)
numbers = st.lists(
    st.tuples(st.integers(-5, 5).map(float), st.floats(-1e3, 1e3)), min_size=2, max_size=30
)


@pytest.mark.filterwarnings("ignore")
@given(pairs=classes)
def test_classes_as_in_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    oracle = pytest.importorskip("sklearn.metrics")
    predictions, labels = (list(side) for side in zip(*pairs, strict=True))
    assert accuracy(predictions, labels) == pytest.approx(
        oracle.accuracy_score(labels, predictions)
    )
    expected = oracle.f1_score(labels, predictions, pos_label="1", zero_division=0)
    assert f1(predictions, labels) == pytest.approx(expected)
    expected = oracle.matthews_corrcoef(labels, predictions)
    assert matthews(predictions, labels) == pytest.approx(expected)


@given(pairs=numbers)
def test_correlations_as_in_scipy(pairs: list[tuple[float, float]]) -> None:
    oracle = pytest.importorskip("scipy.stats")
    first, second = (list(side) for side in zip(*pairs, strict=True))
    # Differences that are lost in rounding make SciPy's result noise.
    assume(len(set(first)) > 1 and max(second) - min(second) > 1e-6 * max(map(abs, second)))
    assert pearson(first, second) == pytest.approx(oracle.pearsonr(first, second)[0], abs=1e-9)
    assert spearman(first, second) == pytest.approx(oracle.spearmanr(first, second)[0], abs=1e-9)


@pytest.mark.parametrize(
    ("predictions", "labels", "expected"),
    [
        # true positives 2, false positives 1, false negatives 1, true negatives 2
        ("110010", "100110", (4 / 6, 2 / 3, (2 * 2 - 1) / 9)),
        ("1111", "1100", (1 / 2, 2 / 3, 0)),  # one class predicted
        ("0000", "1100", (1 / 2, 0, 0)),
        ("0101", "0000", (1 / 2, 0, 0)),  # one class there
        ("0000", "0000", (1, 0, 0)),
        ("1111", "1111", (1, 1, 0)),
        ("01", "10", (0, 0, -1)),
    ],
)
def test_classes_by_hand(predictions: str, labels: str, expected: tuple[float, ...]) -> None:
    found = [metric(list(predictions), list(labels)) for metric in (accuracy, f1, matthews)]
    assert found == pytest.approx(expected)


def test_the_positive_class_has_any_name() -> None:
    assert f1(["yes", "no"], ["yes", "yes"], positive="yes") == pytest.approx(2 / 3)
    assert matthews(["yes", "no"], ["yes", "no"], positive="no") == 1


def test_ranks_are_shared_by_equal_values() -> None:
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / 22.5**0.5)


@pytest.mark.parametrize("scale", [1e-170, 1, 1e300])
def test_correlations_do_not_depend_on_scale(scale: float) -> None:
    first, second = [scale, 2 * scale, 4 * scale], [1.0, 2.0, 3.0]
    assert pearson(first, second) == pytest.approx(0.98198, abs=1e-5)
    assert pearson(first, [-value for value in first]) == -1


@pytest.mark.parametrize("metric", [pearson, spearman])
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([3.5, 3.5], [1.0, 2.0], "^all 2 predictions are 3.5: a correlation with a constant"),
        ([1.0, 2.0], [0.0, 0.0], "^all 2 gold scores are 0:"),
        ([1.0], [2.0], "^all 1 predictions are 1:"),
        ([], [], "^no predictions: "),
    ],
)
def test_constants_have_no_correlation(metric, first, second, message: str) -> None:
    with pytest.raises(UserError, match=message):
        metric(first, second)
