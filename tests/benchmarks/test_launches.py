"""What an update asks of a GPU beyond its passes: the count, its record and its limits."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.benchmarks.plan import LaunchesPlan
from deltasam_fairseq.cli import bench

pytestmark = pytest.mark.fairseq


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """Count six encoder layers, and one layer on both sides."""
    from deltasam_fairseq.benchmarks.launches import count, launches_record_of
    from deltasam_fairseq.benchmarks.record import surroundings

    plans = [
        LaunchesPlan(models=("minilm",), repeats=1),
        LaunchesPlan(models=("translation",), size="tiny", repeats=0),
    ]
    found = [count(plan.models[0], plan, lambda _: None) for plan in plans]
    made = launches_record_of(plans[0], found, surroundings())
    kept: dict[str, Any] = json.loads(json.dumps(made, allow_nan=False))
    return kept


def test_a_method_stays_close_to_its_passes(record: dict[str, Any]) -> None:
    """By parameter, SAM took 36 % more, delta-SAM 66 % and per_instance 217 %."""
    (model, _) = record["models"]
    share = {m: model["share_beyond"][m]["operations"] for m in model["updates"]}
    assert share["none"] == 0
    # Half as many layers as BERT-base, and as much around them.
    assert 0 < share["sam"] < 0.03
    assert 0 < share["delta_sam"] < 0.06
    assert 0 < share["per_instance"] < 0.5


def test_no_method_waits_for_every_layer(record: dict[str, Any]) -> None:
    for model in record["models"]:
        waits = {m: counts["synchronizations"] for m, counts in model["beyond"].items()}
        assert waits["none"] == 0
        assert waits["sam"] <= 2
        assert waits["delta_sam"] <= 2
        assert waits["per_instance"] <= 5


def test_layers_add_to_the_passes_and_little_beyond(record: dict[str, Any]) -> None:
    large, small = record["models"]
    assert large["tensors"] > 2 * small["tensors"]
    assert large["beyond"]["sam"]["operations"] < 1.2 * small["beyond"]["sam"]["operations"]


def test_what_is_beyond_is_what_the_passes_do_not_explain(record: dict[str, Any]) -> None:
    for model in record["models"]:
        each = {name: counts["operations"] for name, counts in model["passes"].items()}
        updates = {name: counts["operations"] for name, counts in model["updates"].items()}
        passes = each["forward"] + each["backward"]
        beyond = updates["sam"] - updates["none"] - passes
        assert model["beyond"]["sam"]["operations"] == beyond
        assert model["share_beyond"]["sam"]["operations"] == pytest.approx(
            beyond / (2 * passes), abs=1e-5
        )


def test_watching_is_measured_where_it_was_asked_for(record: dict[str, Any]) -> None:
    (measured, not_measured) = record["models"]
    assert measured["watching"] > 0
    assert set(measured["watch_seconds"]) == {"plain", "first", "second"}
    assert not_measured["watching"] is None


def test_the_table_says_what_the_record_says(record: dict[str, Any]) -> None:
    from deltasam_fairseq.benchmarks.launches import launches_table_of

    lines = launches_table_of(record).splitlines()
    rows = Counter(line.split()[0] for line in lines if line)
    assert rows["sam"] == rows["per_instance"] == 2
    counts = record["models"][0]["updates"]["sam"]
    (first, _) = [line.split() for line in lines if line.startswith("sam ")]
    assert first[1] == str(counts["operations"])
    assert first[-2] == str(counts["synchronizations"])
    assert sum(line.startswith(("ok", "FAIL")) for line in lines) == len(record["checks"]) == 10


def test_the_verb_prints_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    words = "launches --json --model translation --size tiny --methods none,sam --repeats 0"
    assert bench.run(parser.parse_args(words.split())) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["benchmark"] == "launches"
    assert set(found["models"][0]["updates"]) == {"none", "sam"}
    assert len(err.splitlines()) == 2


ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "scripts" / "results"


def test_the_page_says_what_the_records_say() -> None:
    before, after = (
        json.loads((RESULTS / f"launches{kind}_epyc-2core_202611.json").read_text())
        for kind in ("-by-parameter", "")
    )
    page = (ROOT / "docs" / "launches.md").read_text()
    for old, new in zip(before["models"], after["models"], strict=True):
        for method in ("sam", "delta_sam", "per_instance"):
            cells = [new["model"], f"`{method}`"]
            for what in ("operations", "launches"):
                counts = (old["beyond"][method][what], new["beyond"][method][what])
                share = new["share_beyond"][method][what]
                cells.append(f"{counts[0]:,} → {counts[1]:,} ({100 * share:.1f} %)")
            waits = [model["beyond"][method]["synchronizations"] for model in (old, new)]
            cells.append(f"{waits[0]} → {waits[1]}")
            assert f"| {' | '.join(cells)} |" in page
    assert all(check["passed"] for check in after["checks"])
