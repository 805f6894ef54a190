import csv
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.analysis.rouge_tables import run_table
from deltasam_fairseq.analysis.table import as_csv, as_markdown, as_text
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.run_folder import TIME, RunFolder


def report(value: float) -> dict[str, Any]:
    return {name: {"fmeasure": value} for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")}


def write_run(
    folder: Path,
    method: str,
    *,
    value: float | None = None,
    finished: bool = True,
    data: str = "d",
    signature: str = "rouge|version:1",
) -> Path:
    run = RunFolder(folder / method)
    starts: list[dict[str, Any]] = [{"seconds": 61.0}, {"seconds": 9.0}]
    if not finished:
        starts.append({"ended": None})
    run.write_record({"method": method, "seed": 1, "finished": finished, "starts": starts})
    if value is not None:
        systems = {"model": report(value), "lead (first 9 words)": report(10.0)}
        scores = {"n": 7, "signature": signature, "data_sha256": data, "systems": systems}
        run.results("test").mkdir()
        (run.results("test") / "scores.json").write_text(json.dumps(scores))
    return run.path


def test_runs_and_baselines_in_one_table(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path, "sam", value=12.345),
        write_run(tmp_path, "none", finished=False),
        tmp_path / "delta_sam",
    ]
    assert as_text(run_table(runs, "test")).splitlines() == [
        "system                seed  ROUGE-1  ROUGE-2  ROUGE-L                training",
        "-----------------------------------------------------------------------------",
        "sam                      1    12.35    12.35    12.35              1 min 10 s",
        "none                     1  not run  not run  not run  unfinished, 1 min 10 s",
        "delta_sam                -  not run  not run  not run                 not run",
        "lead (first 9 words)     -    10.00    10.00    10.00                    none",
        "",
        "F-measure, 7 test pairs, rouge|version:1",
    ]


def test_a_run_that_still_trains_or_was_killed_shows_its_time_so_far(tmp_path: Path) -> None:
    run = RunFolder(write_run(tmp_path, "none", finished=False))
    began = time.time() - 5000
    starts = [{"began": time.strftime(TIME, time.localtime(began)), "ended": None}]
    run.write_record({**run.record(), "starts": starts})
    run.log.touch()
    os.utime(run.log, (began + 605, began + 605))
    (row,) = run_table([run.path], "test").rows
    assert row[-1].startswith("unfinished, 10 min ")


def test_markdown_and_csv_hold_the_same(tmp_path: Path) -> None:
    table = run_table([write_run(tmp_path, "sam", value=1.0)], "test")
    lines = as_markdown(table).splitlines()
    assert lines[:3] == [
        "| system | seed | ROUGE-1 | ROUGE-2 | ROUGE-L | training |",
        "| --- | --: | --: | --: | --: | --: |",
        "| sam | 1 | 1.00 | 1.00 | 1.00 | 1 min 10 s |",
    ]
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert rows[0]["system"] == "sam"
    assert rows[1] == {
        **{"system": "lead (first 9 words)", "seed": "-", "training": "none"},
        **{f"ROUGE-{name}": "10.00" for name in "12L"},
        "note": table.note,
    }


def test_without_scores_the_table_says_how_to_get_them(tmp_path: Path) -> None:
    table = run_table([write_run(tmp_path, "sam")], "test")
    assert table.rows == [("sam", "1", "not run", "not run", "not run", "1 min 10 s")]
    assert "deltasam evaluate RUN" in table.note


def test_a_bar_in_a_name_stays_in_its_cell_of_markdown(tmp_path: Path) -> None:
    run = write_run(tmp_path, "sam", value=1.0)
    table = run_table([run, tmp_path / "a|b"], "test")
    assert table.rows[1][0] == "a|b"
    assert as_markdown(table).splitlines()[3].startswith("| a\\|b | - | not run |")


def write_classification(folder: Path, name: str, *, evaluated: bool) -> Path:
    run = RunFolder(folder / name)
    record = {"method": "sam", "seed": 1, "finished": True, "starts": [], "encoder": {"sha256": ""}}
    run.write_record(record)
    if evaluated:
        run.predictions("valid").mkdir()
        (run.predictions("valid") / "scores.json").write_text("{}")
    return run.path


@pytest.mark.parametrize("evaluated", [True, False])
def test_runs_that_generate_nothing_are_told_what_compares_them(
    tmp_path: Path, evaluated: bool
) -> None:
    run = write_classification(tmp_path, "rte", evaluated=evaluated)
    advice = "deltasam evaluate RUN prints .* deltasam sweep and deltasam table 1 compare"
    with pytest.raises(UserError, match=f"compares generated texts, .*{run} .* none.*{advice}"):
        run_table([run], "test")
    (run / "run.json").unlink()
    if evaluated:
        with pytest.raises(UserError, match="compares generated texts"):
            run_table([run], "valid")


def test_among_runs_that_generate_those_that_do_not_are_named(tmp_path: Path) -> None:
    texts = write_run(tmp_path, "sam", value=1.0)
    runs = [texts, *(write_classification(tmp_path, name, evaluated=True) for name in ("a", "b"))]
    with pytest.raises(UserError, match=f"{runs[1]}, {runs[2]} ") as refused:
        run_table([*runs, tmp_path / "missing"], "test")
    assert str(texts) not in str(refused.value)
    RunFolder(texts).predictions("valid").mkdir()
    assert len(run_table([texts], "test").rows) == 2


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"data": "e"}, "cannot share a table, their data_sha256 differs .*sam: d; .*none: e"),
        ({"signature": "rouge|version:2"}, "their signature differs"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, other: dict[str, str], message: str
) -> None:
    runs = [
        write_run(tmp_path, "sam", value=1.0),
        write_run(tmp_path, "none", value=2.0, **other),  # type: ignore[arg-type]
    ]
    with pytest.raises(UserError, match=message):
        run_table(runs, "test")


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run: .*typo"):
        run_table([tmp_path / "typo"], "test")
