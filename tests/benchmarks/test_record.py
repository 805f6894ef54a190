import json
from pathlib import Path

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
        assert times["ratios"]["sam"]["per_instance"]["median"] == pytest.approx(1.1)
        assert times["ratios"]["none"]["per_instance_loop"]["n"] == 1
        assert times["ratios"]["none"]["per_instance_loop"]["median"] == 8.0
    assert model["clocks"]["elapsed"]["seconds"]["none"]["max"] == 6.0
    assert model["clocks"]["processor"]["seconds"]["none"]["max"] == 3.0


def test_tokens_per_second_and_waiting_go_by_the_median(measurement: Measurement) -> None:
    (model,) = record_of(PLAN, [measurement], AROUND)["models"]
    assert model["clocks"]["elapsed"]["tokens_per_second"]["none"] == pytest.approx(1700 / 3, 1e-5)
    assert "waiting" not in model["clocks"]["elapsed"]
    measurement.working = {"none": 1.2, "sam": 7.0}
    (model,) = record_of(PLAN, [measurement], AROUND)["models"]
    # More work than time is a profiler's own doing.
    assert model["clocks"]["elapsed"]["waiting"] == pytest.approx({"none": 0.6, "sam": 0.0})


def test_skipped_updates_are_said_in_the_table(measurement: Measurement) -> None:
    assert "SKIPPED" not in table_of(record_of(PLAN, [measurement], AROUND))
    measurement.skipped = {"sam": 2}
    lines = table_of(record_of(PLAN, [measurement], AROUND)).splitlines()
    assert [line.split()[0] for line in lines if "2 SKIPPED" in line] == ["sam"]


def test_predictions_come_from_the_passes(measurement: Measurement) -> None:
    (model,) = record_of(PLAN, [measurement], AROUND)["models"]
    times = model["clocks"]["elapsed"]
    assert times["passes"]["forward_share"]["median"] == pytest.approx(1 / 3, rel=1e-5)
    assert times["passes"]["forward_over_backward"]["median"] == pytest.approx(5 / 7, rel=1e-5)
    assert times["passes"]["backward_no_weights"]["median"] == pytest.approx(0.8)
    assert times["predicted"]["none"] == pytest.approx(
        {"none": 1, "sam": 2, "delta_sam": 8 / 3, "per_instance": (2 * 1.25 + 1.75 + 0.8) / 3}
    )
    assert times["predicted"]["sam"]["delta_sam"] == pytest.approx(4 / 3)


def test_memory_is_in_copies_of_the_parameters(measurement: Measurement) -> None:
    (model,) = record_of(PLAN, [measurement], AROUND)["models"]
    assert model["memory"]["extra_copies"] == {
        "none": 0.0, "sam": 1.0, "delta_sam": 1.025, "per_instance": 2.5, "per_instance_loop": -2.0
    }  # fmt: skip
    assert model["memory"]["copies_over_sam"] == {
        "none": -1.0, "sam": 0.0, "delta_sam": 0.025, "per_instance": 1.5, "per_instance_loop": -3.0
    }  # fmt: skip
    assert model["memory"]["forward_copies"] == 4.0


def test_the_table_says_what_the_record_says(measurement: Measurement) -> None:
    text = table_of(json.loads(json.dumps(record_of(PLAN, [measurement], AROUND))))
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "2.000" in lines["sam"]
    assert "1.350" in lines["delta_sam"]
    assert "1 fallbacks" in lines["delta_sam"]
    assert "1.100" in lines["per_instance"]
    assert "2.500     1.500" in lines["per_instance"]
    assert "in 1 of 3 rounds" in lines["per_instance_loop"]
    assert "0.71 : 1" in text
    assert "0.333 of forward + backward" in text
    assert text.count("ok    translation") == 4
    assert "FAIL" not in text


def test_a_record_says_with_which_flags_each_method_ran(measurement: Measurement) -> None:
    (model,) = record_of(PLAN, [measurement], AROUND)["models"]
    assert model["method_flags"]["per_instance"].endswith("engine batched")
    assert model["method_flags"]["per_instance_loop"].endswith("engine loop")


RESULTS = Path(__file__).resolve().parents[2] / "scripts" / "results"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("step_*.json")), ids=lambda path: path.stem)
def test_records_that_were_kept_can_be_read(path: Path) -> None:
    record = json.loads(path.read_text())
    text = table_of(record)
    names = {line.split()[0] for line in text.splitlines() if line.strip()}
    assert {"none", "sam"} <= names
    if record["schema"] == 1:
        # Before the batched engine there was the loop alone, and it was called per_instance.
        assert "per_instance_loop" in names
        assert "per_instance" not in names


def test_the_table_does_without_sam(measurement: Measurement) -> None:
    del measurement.updates["sam"], measurement.peak["sam"]
    record = record_of(PLAN, [measurement], AROUND)
    assert "copies_over_sam" not in record["models"][0]["memory"]
    text = table_of(record)
    assert "x sam " not in text.partition("x none, x sam")[0]


def test_a_verdict_names_both_numbers() -> None:
    check = {"model": "m", "what": "w", "value": 2.1, "limit": 2.05, "passed": False}
    assert verdict(check) == "FAIL  m: w: 2.100 > 2.050"
    assert verdict({**check, "value": 2.0, "passed": True}) == "ok    m: w: 2.000 <= 2.050"
