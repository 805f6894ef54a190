"""The record of a measurement, and the limits that it is held to."""

from __future__ import annotations

import json
import math

import pytest
import torch

import deltasam_fairseq
from deltasam_fairseq.benchmarks.plan import METHODS, MODELS, SIZES, Plan
from deltasam_fairseq.benchmarks.record import (
    LEAST_PARAMETERS,
    LEAST_TOKENS,
    Measurement,
    check,
    checks_of,
    record_of,
    rounded_spread,
    surroundings,
)
from deltasam_fairseq.benchmarks.variants import CLOCKS, PASSES, Times, predicted_seconds
from deltasam_fairseq.benchmarks.workloads import WORKLOADS
from deltasam_fairseq.recipes import environment_record

PLAN = Plan(models=("translation",), repeats=3, threads=1)
AROUND = surroundings()


def test_a_record_survives_json_and_says_how_to_redo_it(measurement: Measurement) -> None:
    record = record_of(PLAN, [measurement], AROUND)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["command"] == PLAN.command()
    assert record["settings"]["seed"] == 1
    (model,) = record["models"]
    assert model["method_flags"]["per_instance"].endswith("engine batched")
    assert model["method_flags"]["per_instance_loop"].endswith("engine loop")


def test_both_kinds_of_records_describe_the_same_machine() -> None:
    found, of_runs = AROUND["hardware"], environment_record.hardware()
    assert (found["processor"], found["cores"]) == (of_runs["cpu"], of_runs["cores"])
    assert found["memory_bytes"] > 2**20
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert AROUND["versions"]["deltasam_fairseq"] == deltasam_fairseq.__version__
    assert AROUND["commit"] == environment_record.commit()


def test_ratios_are_taken_within_rounds(measurement: Measurement) -> None:
    (model,) = record_of(PLAN, [measurement], AROUND)["models"]
    for clock in CLOCKS:
        times = model["clocks"][clock]
        # The second round was twice as slow for all; no ratio notices.
        assert times["ratios"]["none"]["sam"] == {
            "n": 3, "min": 2.0, "q1": 2.0, "median": 2.0, "q3": 2.0, "max": 2.0
        }  # fmt: skip
        assert times["ratios"]["sam"]["delta_sam"]["median"] == pytest.approx(1.35)
        assert times["ratios"]["sam"]["per_instance"]["median"] == pytest.approx(1.1)
        assert times["ratios"]["none"]["per_instance_loop"]["n"] == 1
        assert times["ratios"]["none"]["per_instance_loop"]["median"] == 8.0
    assert model["clocks"]["elapsed"]["seconds"]["none"]["max"] == 6.0
    assert model["clocks"]["processor"]["seconds"]["none"]["max"] == 3.0


def test_one_measurement_has_no_spread() -> None:
    assert set(rounded_spread([2.5]).values()) == {1, 2.5}


def test_tokens_per_second_and_waiting_go_by_the_median(measurement: Measurement) -> None:
    (model,) = record_of(PLAN, [measurement], AROUND)["models"]
    assert model["clocks"]["elapsed"]["tokens_per_second"]["none"] == pytest.approx(1700 / 3, 1e-5)
    assert "waiting" not in model["clocks"]["elapsed"]
    measurement.working = {"none": 1.2, "sam": 7.0}
    (model,) = record_of(PLAN, [measurement], AROUND)["models"]
    assert model["clocks"]["elapsed"]["waiting"] == pytest.approx({"none": 0.6, "sam": 0.0})


def test_predictions_come_from_the_passes(measurement: Measurement) -> None:
    (model,) = record_of(PLAN, [measurement], AROUND)["models"]
    times = model["clocks"]["elapsed"]
    assert times["passes"]["forward_share"]["median"] == pytest.approx(1 / 3, rel=1e-5)
    assert times["passes"]["forward_over_backward"]["median"] == pytest.approx(5 / 7, rel=1e-5)
    assert times["passes"]["backward_no_weights"]["median"] == pytest.approx(0.8)
    # The loop has none: its passes are over one sentence at a time.
    assert times["predicted"]["none"] == pytest.approx(
        {"none": 1, "sam": 2, "delta_sam": 8 / 3, "per_instance": (2 * 1.25 + 1.75 + 0.8) / 3}
    )
    assert times["predicted"]["sam"]["delta_sam"] == pytest.approx(4 / 3)


def test_every_pass_of_a_method_is_counted_once() -> None:
    seconds = dict(zip(PASSES, (1, 100, 10_000, 1_000_000), strict=True))
    found = {method: predicted_seconds(method, seconds) for method in METHODS}
    assert found == {
        "none": 10_100,
        "sam": 20_200,
        "delta_sam": 20_202,
        "per_instance": 1_010_200,
        "per_instance_loop": None,
    }


def test_memory_is_in_copies_of_the_parameters(measurement: Measurement) -> None:
    (model,) = record_of(PLAN, [measurement], AROUND)["models"]
    assert model["memory"]["extra_copies"] == {
        "none": 0.0, "sam": 1.0, "delta_sam": 1.025, "per_instance": 2.5, "per_instance_loop": -2.0
    }  # fmt: skip
    assert model["memory"]["copies_over_sam"] == {
        "none": -1.0, "sam": 0.0, "delta_sam": 0.025, "per_instance": 1.5, "per_instance_loop": -3.0
    }  # fmt: skip
    assert model["memory"]["forward_copies"] == 4.0


def failed(found: Measurement) -> list[str]:
    return [one["what"] for one in checks_of(found) if not one["passed"]]


@pytest.mark.parametrize("clock", CLOCKS)
def test_the_made_up_measurement_keeps_all_limits(measurement: Measurement, clock: str) -> None:
    checks = checks_of(measurement, clock)
    assert [one["value"] for one in checks] == pytest.approx([2.0, 1.35, 1.0, 1.025])
    assert [one["limit"] for one in checks] == pytest.approx([2.05, 1.40, 1.05, 1.05])
    assert failed(measurement) == []


@pytest.mark.parametrize(
    ("method", "seconds", "what"),
    [("sam", 6.2, "time of sam over none"), ("delta_sam", 8.5, "time of delta_sam over sam")],
)
def test_a_method_may_take_its_passes_and_a_little(
    measurement: Measurement, method: str, seconds: float, what: str
) -> None:
    measurement.updates[method] = [Times(s, s / 2) for s in (seconds, 2 * seconds, seconds)]
    assert failed(measurement) == [what]


def test_one_bad_round_fails_nothing(measurement: Measurement) -> None:
    measurement.updates["sam"][1] = Times(60.0, 30.0)
    assert failed(measurement) == []


def test_the_limit_of_delta_sam_moves_with_the_share_of_a_forward_pass(
    measurement: Measurement,
) -> None:
    for each in measurement.passes:
        each["forward_no_grad"] = Times(1.2 * each["forward_no_grad"].elapsed, 1.0)
    (limit,) = (c["limit"] for c in checks_of(measurement) if "delta_sam over" in c["what"])
    assert limit == pytest.approx(1.40 + 0.4 - 1 / 3)


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
    assert [c["limit"] for c in checks_of(measurement) if c["what"] == what] == [1.15] * limited
    assert failed(measurement) == []
    measurement.updates["per_instance"] = [Times(7.0, 3.5), Times(14.0, 7.0), Times(7.0, 3.5)]
    assert failed(measurement) == [what] * limited


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
    assert {one["what"].split()[0] for one in checks_of(measurement)} == judged


@pytest.mark.parametrize("model", MODELS)
def test_tiny_batches_are_too_small_to_be_judged(model: str) -> None:
    shapes = {size: WORKLOADS[model][size].shape for size in SIZES}
    tokens = {size: shape.sentences * shape.longest for size, shape in shapes.items()}
    assert 2 * tokens["tiny"] < LEAST_TOKENS <= tokens["default"]


def test_only_methods_that_were_measured_are_in_a_record(measurement: Measurement) -> None:
    del measurement.updates["sam"], measurement.peak["sam"]
    record = record_of(PLAN, [measurement], AROUND)
    assert "copies_over_sam" not in record["models"][0]["memory"]
    assert list(record["models"][0]["clocks"]["elapsed"]["ratios"]) == ["none"]
    assert [one["what"] for one in record["checks"]] == [
        "extra memory of delta_sam, copies of the parameters"
    ]


def test_a_limit_includes_itself_and_excludes_what_is_not_a_number() -> None:
    assert check("m", "w", value=2.0, limit=2.0)["passed"]
    assert not check("m", "w", value=math.nan, limit=2.0)["passed"]
