import math

import pytest

from deltasam_fairseq.benchmarks.limits import (
    LEAST_PARAMETERS,
    LEAST_TOKENS,
    Check,
    checks_of,
    delta_sam_limit,
)
from deltasam_fairseq.benchmarks.measurement import CLOCKS, Measurement, Times
from deltasam_fairseq.benchmarks.plan import MODELS, SIZES
from deltasam_fairseq.benchmarks.workloads import WORKLOADS


def failed(found: Measurement) -> list[str]:
    return [check.what for check in checks_of(found) if not check.passed]


@pytest.mark.parametrize("clock", CLOCKS)
def test_the_made_up_measurement_keeps_all_limits(measurement: Measurement, clock: str) -> None:
    values = [check.value for check in checks_of(measurement, clock)]
    assert values == pytest.approx([2.0, 1.35, 1.0, 1.025])
    assert all(check.passed for check in checks_of(measurement, clock))


def test_sam_may_not_take_more_than_twice_none_and_a_little(measurement: Measurement) -> None:
    measurement.updates["sam"] = [Times(6.2, 3.1), Times(12.4, 6.2), Times(6.2, 3.1)]
    assert failed(measurement) == ["time of sam over none"]


def test_delta_sam_may_not_take_more_than_its_passes_and_a_little(
    measurement: Measurement,
) -> None:
    measurement.updates["delta_sam"] = [Times(8.5, 4.0), Times(17.0, 8.0), Times(8.5, 4.0)]
    assert failed(measurement) == ["time of delta_sam over sam"]


@pytest.mark.parametrize("method", ["sam", "delta_sam"])
def test_one_copy_of_the_parameters_and_no_second(measurement: Measurement, method: str) -> None:
    measurement.peak[method] = measurement.peak["none"] + 43_000_000
    assert failed(measurement) == [f"extra memory of {method}, copies of the parameters"]


@pytest.mark.parametrize(
    ("width", "sentences", "tokens", "limited"),
    [
        (384, 16, 16 * 64, True),
        (768, 32, 32 * 128, True),
        (384, 15, 15 * 64, False),
        (384, 33, 33 * 64, False),
        (768, 16, 16 * 64 - 1, False),
        (768, 16, 16 * 128 + 1, False),
        (1024, 16, 16 * 64, False),
    ],
)
def test_per_instance_may_take_little_more_than_sam_where_it_is_meant_for(
    measurement: Measurement, width: int, sentences: int, tokens: int, limited: bool
) -> None:
    measurement.width = width
    measurement.batch |= {"sentences": sentences, "source_tokens": tokens}
    what = "time of per_instance over sam"
    assert [c.limit for c in checks_of(measurement) if c.what == what] == [1.15] * limited
    assert failed(measurement) == []
    measurement.updates["per_instance"] = [Times(7.0, 3.5), Times(14.0, 7.0), Times(7.0, 3.5)]
    assert failed(measurement) == [what] * limited


def test_one_bad_round_fails_nothing(measurement: Measurement) -> None:
    measurement.updates["sam"][1] = Times(60.0, 30.0)
    assert failed(measurement) == []


@pytest.mark.parametrize(
    ("parameters", "tokens", "judged"),
    [
        (LEAST_PARAMETERS, LEAST_TOKENS, {"time", "extra"}),
        (LEAST_PARAMETERS, LEAST_TOKENS - 1, {"extra"}),
        (LEAST_PARAMETERS - 1, LEAST_TOKENS, set()),
    ],
)
def test_what_is_too_small_is_not_judged(
    measurement: Measurement, parameters: int, tokens: int, judged: set[str]
) -> None:
    measurement.parameters = parameters
    measurement.batch |= {"source_tokens": tokens - 100, "target_tokens": 100}
    assert {check.what.split()[0] for check in checks_of(measurement)} == judged


@pytest.mark.parametrize("model", MODELS)
def test_the_sizes_that_are_there_to_see_that_it_works_are_too_small(model: str) -> None:
    sizes = {size: WORKLOADS[model][size].shape for size in SIZES}
    tokens = {name: shape.sentences * shape.longest for name, shape in sizes.items()}
    assert 2 * tokens["tiny"] < LEAST_TOKENS <= tokens["default"]


def test_only_methods_that_were_measured_are_checked(measurement: Measurement) -> None:
    del measurement.updates["sam"]
    assert [check.what for check in checks_of(measurement)] == [
        "extra memory of delta_sam, copies of the parameters"
    ]


def test_the_limit_moves_with_the_share_of_a_forward_pass() -> None:
    assert delta_sam_limit(1 / 3) == pytest.approx(1.40)
    for share in (0.2, 0.4):
        assert delta_sam_limit(share) - (1 + share) == pytest.approx(1.40 - 4 / 3)


def test_a_limit_includes_itself_and_excludes_what_is_not_a_number() -> None:
    assert Check("m", "w", value=2.0, limit=2.0).passed
    assert not Check("m", "w", value=math.nan, limit=2.0).passed
