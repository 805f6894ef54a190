from itertools import product
from math import sqrt
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.resampling import (
    MOST_EXACT,
    Resampling,
    bootstrap_interval,
    draw_counts,
    draw_examples,
    least_p,
    randomization_test,
    sign_flip_test,
)


def column(*values: float) -> list[list[float]]:
    return [[value] for value in values]


@pytest.mark.parametrize("draw", [draw_examples, draw_counts])
def test_the_interval_is_the_normal_one_for_many_examples(draw: Any) -> None:
    values = np.random.default_rng(0).normal(50, 10, size=400)
    ((low, high),) = bootstrap_interval(values[:, None], Resampling(4000), draw=draw)
    half = 1.96 * values.std() / sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.08)


def test_shorter_tails_widen_the_interval() -> None:
    values = column(*range(30))
    ((low, high),) = bootstrap_interval(values, Resampling(500), tail=0.25)
    ((lower, higher),) = bootstrap_interval(values, Resampling(500), tail=0.005)
    assert lower < low < 14.5 < high < higher


def test_columns_share_their_draws() -> None:
    values = [[float(number), 2.0 * number] for number in range(20)]
    first, second = bootstrap_interval(values, Resampling(100))
    assert second == pytest.approx([2 * end for end in first])


def test_equal_seeds_give_equal_results_and_others_do_not() -> None:
    values, others = column(1, 5, 2, 9, 4), column(2, 3, 4, 4, 4)
    for function in (
        lambda seed: bootstrap_interval(values, Resampling(50, seed)),
        lambda seed: randomization_test(values, others, Resampling(50, seed)),
    ):
        assert function(1) == function(1)
        assert len({str(function(seed)) for seed in range(6)}) > 1


def test_the_test_is_that_over_all_swappings() -> None:
    values, others = [7.0, 5.0, 6.0, 9.0, 4.0, 8.0], [4.0, 5.5, 3.0, 6.0, 4.5, 7.0]
    differences = np.subtract(values, others)
    sums = [abs(np.dot(signs, differences)) for signs in product((-1, 1), repeat=6)]
    exact = np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9)
    (found,) = randomization_test(column(*values), column(*others), Resampling(20_000))
    assert found == pytest.approx(exact, abs=0.01)


def test_p_values_are_neither_zero_nor_hurt_by_rounding() -> None:
    better = column(*[0.1 + 0.2] * 40)
    assert randomization_test(better, column(*[0.3 - 0.1] * 40), Resampling(99)) == [0.01]
    (p_value,) = randomization_test(column(0.1, 0.7), column(0.2, 0.6), Resampling(99))
    assert p_value == 1


@pytest.mark.parametrize(("draws", "seed"), [(0, 1), (10, -1)])
def test_numbers_that_mean_nothing(draws: int, seed: int) -> None:
    with pytest.raises(UserError, match=f"{draws} draws with seed {seed}: at least one"):
        Resampling(draws, seed)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_differences_of_one_sign_have_the_least_p(n: int) -> None:
    differences = [float(number) for number in range(1, n + 1)]
    assert sign_flip_test(differences) == least_p(n) == 2 / 2**n
    assert sign_flip_test([-value for value in differences]) == least_p(n)


def test_known_p_values() -> None:
    assert sign_flip_test([0.0, 0.0, 0.0]) == 1
    assert sign_flip_test([1.0, -1.0]) == 1
    # |±1 ±2 ±4| is 5 or more in four of eight patterns: 7, 5 and their opposites.
    assert sign_flip_test([-1.0, 2.0, 4.0]) == 4 / 8


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=7))
def test_the_exact_test_counts_all_patterns(differences: list[int]) -> None:
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in product((-1, 1), repeat=len(differences))
    ]
    expected = fmean(total >= abs(sum(differences)) for total in sums)
    assert sign_flip_test([float(value) for value in differences]) == pytest.approx(expected)
    # Tenths are rounded, so sums that are equal come out unequal; they must count as equal.
    assert sign_flip_test([value / 10 for value in differences]) == pytest.approx(expected)


def test_with_many_seeds_patterns_are_drawn() -> None:
    differences = np.random.default_rng(0).normal(0.4, 1, MOST_EXACT + 4)
    z = differences.sum() / sqrt((differences**2).sum())
    normal = 2 * (1 - 0.5 * (1 + np.tanh(sqrt(2 / np.pi) * (z + 0.044715 * z**3))))
    assert sign_flip_test(differences.tolist()) == pytest.approx(normal, abs=0.02)
    assert sign_flip_test([1.0] * 40) == least_p(40) == 1 / 10_001


def test_nothing_to_test() -> None:
    with pytest.raises(UserError, match="the methods share no seed"):
        sign_flip_test([])
