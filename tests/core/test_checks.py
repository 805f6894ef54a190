"""Value checks: what they accept, and that a message names the value and its owner."""

from __future__ import annotations

import math

import pytest

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.core.checks import not_negative, one_of, positive


@pytest.mark.parametrize("check", [positive, not_negative])
def test_a_good_number_comes_back_as_a_float(check) -> None:
    result = check(2, "rho")
    assert (result, type(result)) == (2.0, float)
    assert check(1e-300, "rho") == 1e-300


def test_zero_is_where_they_differ() -> None:
    assert not_negative(0, "rho") == 0.0
    with pytest.raises(ValueError, match=r"^eta must be greater than 0, got 0$"):
        positive(0, "eta")


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^rho must be at least 0, got -0.5$"):
        not_negative(-0.5, "rho")
    with pytest.raises(ValueError, match=r"^eta must be greater than 0, got -0.5$"):
        positive(-0.5, "eta")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "0.05", None, True, [0.05]])
@pytest.mark.parametrize("check", [positive, not_negative])
def test_what_is_no_finite_number_is_refused(check, bad: object) -> None:
    with pytest.raises(ValueError, match="^rho must be a finite number, got ") as error:
        check(bad, "rho")
    assert str(error.value).endswith(repr(bad))


def test_one_of_lists_what_there_is() -> None:
    assert one_of("sam", "method", METHODS) == "sam"
    with pytest.raises(
        ValueError,
        match=r"^method must be one of none, sam, delta_sam, per_instance; got 'asam'$",
    ):
        one_of("asam", "method", METHODS)
