import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasam_fairseq.benchmarks.spread import Spread, spread_of


def test_one_measurement_has_no_spread() -> None:
    assert spread_of([2.5]) == Spread(1, 2.5, 2.5, 2.5, 2.5, 2.5)


def test_one_slow_round_does_not_move_the_median() -> None:
    assert spread_of([2.0, 2.0, 2.0, 2.0, 50.0]).median == 2.0


def test_nothing_to_summarize() -> None:
    with pytest.raises(ValueError, match="no measurements"):
        spread_of([])


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=20))
def test_the_numbers_are_in_order(values: list[float]) -> None:
    found = spread_of(values)
    low, first, middle, third, high = found[1:]
    assert found.n == len(values)
    assert (low, high) == (min(values), max(values))
    tolerance = 1e-9 * high
    assert low <= first + tolerance
    assert first <= middle + tolerance
    assert middle <= third + tolerance
    assert third <= high + tolerance
