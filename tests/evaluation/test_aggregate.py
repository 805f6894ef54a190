from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.aggregate import Aggregate, aggregate, aggregate_reports

A: dict[str, Any] = {"f1": 80.0, "files": {"x": {"r": 10, "n": 5}}, "n": 9, "signature": "s|1"}


def test_by_hand() -> None:
    # Squared distances from 3.5 are 0.25, 6.25, 12.25 and 2.25: 21 in all, 7 for each but one.
    found = aggregate([4.0, 1.0, 7.0, 2.0])
    assert found == Aggregate(mean=3.5, median=3.0, max=7.0, min=1.0, std=found.std, n=4)
    assert found.std == pytest.approx(7**0.5)


def test_one_seed_has_no_spread_and_says_that_it_is_one() -> None:
    found = aggregate([70.0])
    assert (found.std, found.n) == (None, 1)
    assert str(found) == "70.00 (median 70.00, max 70.00, n=1)"


@given(st.lists(st.floats(-100, 100), min_size=1))
def test_the_order_of_seeds_does_not_matter_and_the_text_has_n(values: list[float]) -> None:
    found = aggregate(values)
    assert found == aggregate(values[::-1])
    assert found.min <= found.median <= found.max
    assert found.min - 1e-9 <= found.mean <= found.max + 1e-9
    assert f"n={len(values)})" in str(found)


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "no scores"), ([1.0, float("nan")], "score 2 is nan: a run without a score")],
)
def test_values_that_have_no_place(values: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        aggregate(values)


def test_reports_are_summarized_number_by_number() -> None:
    b = {**A, "f1": 84, "files": {"x": {"r": 20, "n": 5}}}
    found = aggregate_reports({"a": A, "b": b})
    assert found.keys() == {"f1", "files.x.r"}
    assert (found["f1"].mean, found["files.x.r"].max, found["f1"].n) == (82, 20, 2)
    assert aggregate_reports({"a": {"ci": [1.0, 3.0]}})["ci.1"].mean == 3


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({**A, "signature": "s|2"}, "a and b are not comparable: signature is 's|1' in one"),
        ({**A, "n": 8}, "a and b are not comparable: n is 9 in one and 8 in the other"),
        ({**A, "files": {"x": {"r": 1, "n": 4}}}, "not comparable: files.x.n is 5"),
        ({**A, "acc": 1.0}, "a and b hold different scores: acc in one of them"),
        ({**A, "f1": None}, "a and b are not comparable: f1 is 80.0 in one and None"),
    ],
)
def test_reports_that_are_not_comparable(other: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        aggregate_reports({"a": A, "b": other})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("reports", "message"),
    [({}, "no reports"), ({"a": {"n": 3, "signature": "s"}}, "^a: no scores in it")],
)
def test_nothing_to_aggregate(reports: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        aggregate_reports(reports)
