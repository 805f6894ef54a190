"""The registry: unique names, listings in order, and errors that help."""

from __future__ import annotations

import pytest

from deltasam_fairseq.core.estimators import ESTIMATORS
from deltasam_fairseq.registry import Registry, UnknownName


def walk() -> str:
    """Go on foot.

    Slowly.
    """
    return "walk"


def run() -> str:
    return "run"


@pytest.fixture
def gaits() -> Registry:
    registry: Registry = Registry("gait")
    registry.register("walk")(walk)
    registry.register("run", description="Go faster.")(run)
    return registry


def test_the_decorator_gives_its_argument_back_and_get_finds_it() -> None:
    registry: Registry = Registry("gait")
    assert registry.register("walk")(walk) is walk
    assert registry.get("walk") is walk


def test_listings_are_in_alphabetical_order(gaits: Registry) -> None:
    assert gaits.names() == ["run", "walk"]
    assert list(gaits.items()) == [("run", run), ("walk", walk)]


def test_a_description_is_the_one_given_or_the_first_line_of_the_docstring(
    gaits: Registry,
) -> None:
    assert gaits.describe("run") == "Go faster."
    assert gaits.describe("walk") == "Go on foot."
    gaits.register("undocumented")(lambda: "?")
    assert gaits.describe("undocumented") == ""
    with pytest.raises(UnknownName):
        gaits.describe("hop")


def test_membership(gaits: Registry) -> None:
    assert "walk" in gaits
    assert "hop" not in gaits
    assert walk not in gaits


def test_another_object_under_a_taken_name_is_refused_and_both_are_named(gaits: Registry) -> None:
    message = "gait 'walk' is taken by .*walk.*; register .*run.* under another name"
    with pytest.raises(ValueError, match=message):
        gaits.register("walk")(run)
    assert gaits.get("walk") is walk


def test_the_same_object_may_be_registered_again(gaits: Registry) -> None:
    gaits.register("walk")(walk)
    assert gaits.names() == ["run", "walk"]


def test_an_unknown_name_is_answered_with_the_nearest_and_with_all(gaits: Registry) -> None:
    with pytest.raises(UnknownName) as error:
        gaits.get("wlak")
    assert str(error.value) == "unknown gait 'wlak'; did you mean 'walk'? Known: run, walk"
    assert isinstance(error.value, KeyError)


def test_an_unknown_name_that_is_near_nothing(gaits: Registry) -> None:
    with pytest.raises(UnknownName) as error:
        gaits.get("zzz")
    assert str(error.value) == "unknown gait 'zzz'. Known: run, walk"


def test_an_empty_registry_says_that_it_knows_none() -> None:
    with pytest.raises(UnknownName) as error:
        Registry("gait").get("walk")
    assert str(error.value) == "unknown gait 'walk'. Known: none"


def test_two_registries_share_nothing(gaits: Registry) -> None:
    assert Registry("gait").names() == []


def test_the_estimators_are_registered_and_described() -> None:
    norms = ["gibbs", "inverse_norm"]
    assert ESTIMATORS.names() == sorted(["exact", "finite_difference", "random", "uniform", *norms])
    for name, _ in ESTIMATORS.items():
        assert ESTIMATORS.describe(name).endswith((".", ":", "time"))
