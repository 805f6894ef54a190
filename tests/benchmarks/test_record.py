import json

import pytest

from deltasam_fairseq.benchmarks.measurement import CLOCKS, Measurement
from deltasam_fairseq.benchmarks.plan import Plan
from deltasam_fairseq.benchmarks.record import record_of, surroundings
from deltasam_fairseq.benchmarks.table import table_of, verdict

PLAN = Plan(models=("translation",), repeats=3, threads=1)
AROUND = surroundings()


def test_a_record_survives_json_and_says_how_to_redo_it(measurement: Measurement) -> None:
    record = record_of(PLAN, [measurement], AROUND)
    assert json.loads(json.dumps(record)) == json.loads(json.dumps(record, allow_nan=False))
    assert record["command"] == PLAN.command()
    assert record["settings"]["seed"] == 1
    assert {"benchmark", "schema", "date", "commit", "hardware", "load", "versions"} <= set(record)


def test_ratios_are_taken_within_rounds(measurement: Measurement) -> None:
    (model,) = record_of(PLAN, [measurement], AROUND)["models"]
    for clock in CLOCKS:
        times = model["clocks"][clock]
        # The second round was twice as slow for all; no ratio notices.
        assert times["ratios"]["none"]["sam"] == {
            "n": 3, "min": 2.0, "q1": 2.0, "median": 2.0, "q3": 2.0, "max": 2.0
        }  # fmt: skip
        assert times["ratios"]["sam"]["delta_sam"]["median"] == pytest.approx(1.35)
        assert times["ratios"]["none"]["per_instance"]["n"] == 1
        assert times["ratios"]["none"]["per_instance"]["median"] == 8.0
    assert model["clocks"]["elapsed"]["seconds"]["none"]["max"] == 6.0
    assert model["clocks"]["processor"]["seconds"]["none"]["max"] == 3.0


def test_predictions_come_from_the_passes(measurement: Measurement) -> None:
    (model,) = record_of(PLAN, [measurement], AROUND)["models"]
    times = model["clocks"]["elapsed"]
    assert times["passes"]["forward_share"]["median"] == pytest.approx(1 / 3, rel=1e-5)
    assert times["passes"]["forward_over_backward"]["median"] == pytest.approx(5 / 7, rel=1e-5)
    assert times["predicted"]["none"] == pytest.approx({"none": 1, "sam": 2, "delta_sam": 8 / 3})
    assert times["predicted"]["sam"]["delta_sam"] == pytest.approx(4 / 3)


def test_memory_is_in_copies_of_the_parameters(measurement: Measurement) -> None:
    (model,) = record_of(PLAN, [measurement], AROUND)["models"]
    assert model["memory"]["extra_copies"] == {
        "none": 0.0, "sam": 1.0, "delta_sam": 1.025, "per_instance": -2.0
    }  # fmt: skip
    assert model["memory"]["forward_copies"] == 4.0


def test_the_table_says_what_the_record_says(measurement: Measurement) -> None:
    text = table_of(json.loads(json.dumps(record_of(PLAN, [measurement], AROUND))))
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "2.000" in lines["sam"]
    assert "1.350" in lines["delta_sam"]
    assert "1 fallbacks" in lines["delta_sam"]
    assert "in 1 of 3 rounds" in lines["per_instance"]
    assert "0.71 : 1" in text
    assert "0.333 of forward + backward" in text
    assert text.count("ok    translation") == 4
    assert "FAIL" not in text


def test_the_table_does_without_sam(measurement: Measurement) -> None:
    del measurement.updates["sam"]
    text = table_of(record_of(PLAN, [measurement], AROUND))
    assert "x sam " not in text.partition("x none, x sam")[0]


def test_a_verdict_names_both_numbers() -> None:
    check = {"model": "m", "what": "w", "value": 2.1, "limit": 2.05, "passed": False}
    assert verdict(check) == "FAIL  m: w: 2.100 > 2.050"
    assert verdict({**check, "value": 2.0, "passed": True}) == "ok    m: w: 2.000 <= 2.050"
