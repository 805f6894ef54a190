"""Records as tables of the documentation."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.benchmarks.markdown import markdown_of
from deltasam_fairseq.benchmarks.measurement import Measurement
from deltasam_fairseq.benchmarks.plan import Plan
from deltasam_fairseq.benchmarks.record import record_of, surroundings
from deltasam_fairseq.cli import bench
from deltasam_fairseq.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "per_instance.md").read_text()
RESULTS = ROOT / "scripts" / "results"
PLAN = Plan(models=("translation",), repeats=3, threads=1)


def written(path: Path, record: Any) -> Path:
    path.write_text(json.dumps(record))
    return path


def cells(table: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def test_a_row_per_model_says_what_the_record_says(
    measurement: Measurement, tmp_path: Path
) -> None:
    measurement.updates["per_instance"][0] = None
    record = record_of(PLAN, [measurement, measurement], surroundings())
    rows = cells(markdown_of([written(tmp_path / "record.json", record)]))
    predicted = (2 * 1.25 + 1.75 + 0.8) / 6
    assert rows == 2 * [
        ["translation", "2 × 450 + 400", "1.10", f"{predicted:.2f}", "4.00", "1.35", "1.5", "4.0"]
    ]


def test_ratios_that_differ_have_their_quartiles(measurement: Measurement, tmp_path: Path) -> None:
    rounds = measurement.updates["per_instance"]
    measurement.updates["per_instance"] = [t and t._replace(elapsed=t.elapsed + 1) for t in rounds]
    record = record_of(PLAN, [measurement], surroundings())
    ratios = [(6.6 + 1) / 6, (13.2 + 1) / 12, (6.6 + 1) / 6]
    low, middle, high = sorted(ratios)
    expected = f"{middle:.2f} ({(low + middle) / 2:.2f} – {(middle + high) / 2:.2f})"
    assert cells(markdown_of([written(tmp_path / "r.json", record)]))[0][2] == expected


def test_what_was_not_measured_has_a_dash(measurement: Measurement, tmp_path: Path) -> None:
    for method in ("delta_sam", "per_instance", "per_instance_loop"):
        del measurement.updates[method], measurement.peak[method]
    record = record_of(PLAN, [measurement], surroundings())
    row = cells(markdown_of([written(tmp_path / "r.json", record)]))[0]
    assert row[2:7] == ["–"] * 2 + ["–"] * 3
    del measurement.updates["sam"], measurement.peak["sam"]
    record = record_of(PLAN, [measurement], surroundings())
    assert cells(markdown_of([written(tmp_path / "r.json", record)]))[0][2:7] == ["–"] * 5


def test_a_bar_in_a_name_ends_no_cell(measurement: Measurement, tmp_path: Path) -> None:
    measurement.model = "a|b"
    record = record_of(PLAN, [measurement], surroundings())
    row = markdown_of([written(tmp_path / "r.json", record)]).splitlines()[-1]
    assert row.startswith(r"| a\|b | 2 ")


def test_of_the_first_schema_per_instance_is_the_loop(
    measurement: Measurement, tmp_path: Path
) -> None:
    record = record_of(PLAN, [measurement], surroundings()) | {"schema": 1}
    row = cells(markdown_of([written(tmp_path / "r.json", record)]))[0]
    assert (row[2], row[4]) == ("–", "1.10")


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


def test_the_commands_of_the_documentation_are_those_of_the_records() -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    plans = [
        bench.plan_of(parser.parse_args(words.split()))
        for words in re.findall(r"^deltasam bench (step .*)$", PAGE, re.MULTILINE)
    ]
    assert plans
    kept = [json.loads(path.read_text())["command"] for path in RESULTS.glob("step_*.json")]
    assert {plan.command() for plan in plans} <= set(kept)
