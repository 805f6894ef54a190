"""Records as a table for people, and as the tables of the documentation."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.benchmarks.plan import Plan
from deltasam_fairseq.benchmarks.record import (
    LEAST_PARAMETERS,
    LEAST_TOKENS,
    Measurement,
    record_of,
    surroundings,
)
from deltasam_fairseq.benchmarks.table import markdown_of, table_of, verdict
from deltasam_fairseq.cli import bench
from deltasam_fairseq.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.stem: path.read_text() for path in (ROOT / "docs").glob("*.md")}
PAGE = "\n".join(PAGES.values()).replace("\\\n", "")
RESULTS = sorted((ROOT / "scripts" / "results").glob("step_*.json"))


def record_with(*found: Measurement) -> dict[str, Any]:
    plan = Plan(models=("translation",), repeats=3, threads=1, device="cpu")
    record: dict[str, Any] = json.loads(json.dumps(record_of(plan, found, surroundings())))
    return record


def markdown_rows(path: Path, *found: Measurement) -> list[list[str]]:
    path.write_text(json.dumps(record_with(*found)))
    return [line.strip("| ").split(" | ") for line in markdown_of([path]).splitlines()[2:]]


def test_the_table_says_what_the_record_says(measurement: Measurement) -> None:
    text = table_of(record_with(measurement))
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
    assert f"models of {LEAST_PARAMETERS // 10**6} million parameters" in text
    assert f"batches of {LEAST_TOKENS} tokens" in text


def test_skipped_updates_and_waiting_are_said_in_the_table(measurement: Measurement) -> None:
    assert "SKIPPED" not in table_of(record_with(measurement))
    assert "waits" not in table_of(record_with(measurement))
    measurement.skipped = {"sam": 2}
    measurement.working = dict.fromkeys(measurement.updates, 1.2)
    text = table_of(record_with(measurement))
    assert [line.split()[0] for line in text.splitlines() if "2 SKIPPED" in line] == ["sam"]
    (row,) = (line for line in text.splitlines() if line.startswith("none "))
    assert row.split()[-1] == "0.60"


def test_the_table_does_without_sam(measurement: Measurement) -> None:
    del measurement.updates["sam"], measurement.peak["sam"]
    assert "x sam " not in table_of(record_with(measurement)).partition("x none, x sam")[0]


def test_a_verdict_names_both_numbers() -> None:
    check = {"model": "m", "what": "w", "value": 2.1, "limit": 2.05, "passed": False}
    assert verdict(check) == "FAIL  m: w: 2.100 > 2.050"
    assert verdict({**check, "value": 2.0, "passed": True}) == "ok    m: w: 2.000 <= 2.050"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_records_that_were_kept_can_be_read(path: Path) -> None:
    record = json.loads(path.read_text())
    names = {line.split()[0] for line in table_of(record).splitlines() if line.strip()}
    assert set(record["settings"]["methods"]) <= names


def test_a_row_per_model_says_what_the_record_says(
    measurement: Measurement, tmp_path: Path
) -> None:
    measurement.updates["per_instance"][0] = None
    predicted = (2 * 1.25 + 1.75 + 0.8) / 6
    assert markdown_rows(tmp_path / "record.json", measurement, measurement) == 2 * [
        ["translation", "2 × 450 + 400", "1.10", f"{predicted:.2f}", "4.00", "1.35", "1.5", "4.0"]
    ]


def test_ratios_that_differ_have_their_quartiles(measurement: Measurement, tmp_path: Path) -> None:
    rounds = measurement.updates["per_instance"]
    measurement.updates["per_instance"] = [t and t._replace(elapsed=t.elapsed + 1) for t in rounds]
    low, middle, high = sorted([(6.6 + 1) / 6, (13.2 + 1) / 12, (6.6 + 1) / 6])
    expected = f"{middle:.2f} ({(low + middle) / 2:.2f} – {(middle + high) / 2:.2f})"
    assert markdown_rows(tmp_path / "r.json", measurement)[0][2] == expected


def test_what_was_not_measured_has_a_dash(measurement: Measurement, tmp_path: Path) -> None:
    for method in ("delta_sam", "per_instance", "per_instance_loop", "sam"):
        del measurement.updates[method], measurement.peak[method]
        if method in {"per_instance_loop", "sam"}:
            assert markdown_rows(tmp_path / "r.json", measurement)[0][2:7] == ["–"] * 5


def test_a_bar_in_a_name_ends_no_cell(measurement: Measurement, tmp_path: Path) -> None:
    measurement.model = "a|b"
    assert markdown_rows(tmp_path / "r.json", measurement)[0][0] == r"a\|b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no record of deltasam bench"),
        ("[]", "holds no record of deltasam bench"),
        ('{"benchmark": "speed"}', "is a record of speed, not of step"),
    ],
)
def test_what_is_no_record_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        markdown_of([path])
    with pytest.raises(UserError, match="holds no record"):
        markdown_of([tmp_path / "absent.json"])


def test_the_tables_of_the_documentation_are_those_of_the_records() -> None:
    shown = re.findall(r"^deltasam bench show (.*)$", PAGE, re.MULTILINE)
    assert shown
    for names in shown:
        paths = [path for name in names.split() for path in sorted(ROOT.glob(name))]
        assert markdown_of(paths) in PAGE, names
    assert {page for page, text in PAGES.items() if "\ndeltasam bench show" in text} == {
        *("per_instance", "rivals")
    }


def test_the_commands_of_the_documentation_are_those_of_the_records() -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    commands = {
        bench.step_plan(parser.parse_args(words.split())).command()
        for words in re.findall(r"^deltasam bench (step .*)$", PAGE, re.MULTILINE)
    }
    assert commands
    assert commands <= {json.loads(path.read_text())["command"] for path in RESULTS}
