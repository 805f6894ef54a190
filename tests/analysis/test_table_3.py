from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.analysis.rouge_tables import table_3
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.published import TABLE_3
from deltasam_fairseq.recipes.run_folder import RunFolder
from tests.analysis.test_run_table import write_classification, write_run

GPU = {"gpus": ["NVIDIA H100"] * 8, "cores": 16, "cpu": "EPYC"}


def evaluated(folder: Path, method: str, value: float, **facts: Any) -> Path:
    folder.mkdir()
    run = RunFolder(write_run(folder, method, value=value))
    entries = {"recipe": "cnndm", "seed": 1, "hardware": GPU, "gpus": 4, **facts}
    run.write_record({**run.record(), "starts": [{"seconds": 5400.0}], **entries})
    return run.path


def test_runs_that_generate_nothing_are_refused(tmp_path: Path) -> None:
    run = write_classification(tmp_path, "rte", evaluated=True)
    with pytest.raises(UserError, match="compares generated texts"):
        table_3([run], "test")


def test_without_runs_every_cell_of_ours_says_so() -> None:
    table = table_3([], "test")
    ours = [row for row in table.rows if row[0] not in TABLE_3]
    assert [row[0] for row in ours] == [
        f"ours: {name}" for name in ("none", "sam", "delta_sam", "per_instance", "rdrop", "r3f")
    ]
    assert {cell for row in ours for cell in row[1:]} == {"not run"}
    assert {len(row) for row in table.rows} == {len(table.header)}


def test_the_published_figures_are_those_of_table_3() -> None:
    figures = {name.split(" (")[0]: row.cells for name, row in TABLE_3.items()}
    assert figures == {
        "BART": ("44.16", "21.28", "40.90"),
        "PEGASUS": ("44.17", "21.47", "41.11"),
        "BART + R3F": ("44.38", "21.53", "41.17"),
        "BART + R-Drop": ("44.51", "21.58", "41.24"),
        "BART + δ-SAM": ("44.70", "21.54", "41.81"),
    }


def test_seeds_of_a_method_share_a_row(tmp_path: Path) -> None:
    runs = [
        evaluated(tmp_path / "a", "delta_sam", 44.0, seed=10),
        evaluated(tmp_path / "b", "delta_sam", 45.0, seed=2),
        evaluated(tmp_path / "d", "sam+r3f", 46.0),
        evaluated(tmp_path / "c", "none", 43.0, gpus=None, hardware={"cores": 2, "cpu": "EPYC"}),
    ]
    rows = {row[0]: row[1:] for row in table_3(runs, "test").rows}
    assert rows["ours: delta_sam"] == (
        *("44.50", "44.50", "44.50", "see below", "2, 10 (mean of 2)", "4 NVIDIA H100", "1.50"),
    )
    assert rows["ours: none"][4:6] == ("1", "2 cores, EPYC")
    assert rows["ours: sam"][0] == "not run"
    assert rows["ours: sam+r3f"][0] == "46.00"
    assert list(rows)[-1] == "ours: sam+r3f"


@pytest.mark.parametrize("recipe", ["cnndm", "cnndm-small"])
def test_runs_on_other_pairs_are_marked(tmp_path: Path, recipe: str) -> None:
    run = evaluated(tmp_path / "a", "sam", 44.0, recipe=recipe)
    note = table_3([run], "test").note
    assert "rouge|version:1" in note
    assert f"NOT COMPARABLE with the published rows: recipe {recipe} and 7 pairs" in note


def test_a_run_without_scores_is_an_error(tmp_path: Path) -> None:
    run = write_run(tmp_path, "sam")
    with pytest.raises(UserError, match="has no test scores; make them with: deltasam evaluate"):
        table_3([run], "test")
    with pytest.raises(UserError, match="is not a run"):
        table_3([tmp_path / "nowhere"], "test")
