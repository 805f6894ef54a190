from itertools import product
from math import sqrt

import numpy as np
import pytest

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.resampling import (
    Resampling,
    bootstrap_interval,
    randomization_test,
)


def column(*values: float) -> list[list[float]]:
    return [[value] for value in values]


def test_the_interval_is_the_normal_one_for_many_examples() -> None:
    values = np.random.default_rng(0).normal(50, 10, size=400)
    ((low, high),) = bootstrap_interval(values[:, None].tolist(), Resampling(4000))
    half = 1.96 * values.std() / sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.08)


def test_the_level_of_confidence_widens_the_interval() -> None:
    values = column(*range(30))
    ((low, high),) = bootstrap_interval(values, Resampling(500), confidence=0.5)
    ((lower, higher),) = bootstrap_interval(values, Resampling(500), confidence=0.99)
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
