"""Table 6 from records: published minutes, ours, and ratios seed by seed."""

from pathlib import Path

import pytest

from deltasam_fairseq.analysis.paper_tables import table_6
from deltasam_fairseq.analysis.table import Table
from deltasam_fairseq.cli.main import main
from deltasam_fairseq.recipes.published import TABLE_6
from tests.support.sweep_records import write_record


def cell(table: Table, system: str, row: str, task: str = "RTE") -> str:
    (found,) = [one for one in table.rows if one[:2] == (system, row)]
    return found[table.header.index(task)]


def timed(
    folder: Path,
    method: str,
    seed: int,
    seconds: float,
    **changes: object,
) -> None:
    taken: dict[str, object] = {"train": seconds}
    if "processor" in changes:
        taken["train_processor"] = changes.pop("processor")
    changes = {"model": "minilm_l6", "seconds": taken, **changes}
    write_record(folder, method, seed, 60.0, **changes)


def test_the_paper_s_minutes_and_times_over_sam(tmp_path: Path) -> None:
    table = table_6([tmp_path])
    minutes = [row for row in table.rows if row[1] == "published, minutes"]
    assert len(minutes) == sum(map(len, TABLE_6.values()))
    assert cell(table, "BERT-base, δ-SAM", "published, over SAM", "SST-2") == "1.12"
    assert cell(table, "BERT-base, per-instance", "published, over SAM", "RTE") == "5.80"
    assert cell(table, "BERT-base, per-instance", "published, over SAM", "MNLI") == "-"
    assert cell(table, "RoBERTa-large, SAM", "ours, roberta_large, minutes") == "not run"
    sam = [row[1] for row in table.rows if row[0] == "BERT-base, SAM"]
    assert sam == ["published, minutes", "ours, bert_base_cased, minutes"]


def test_ratios_are_taken_between_runs_of_the_same_seed(tmp_path: Path) -> None:
    for seed, base in ((1, 60.0), (2, 600.0)):
        timed(tmp_path, "none", seed, base)
        timed(tmp_path, "sam", seed, (1.5 + seed / 2) * base)
    table = table_6([tmp_path])
    assert cell(table, "minilm_l6, none", "ours, minilm_l6, minutes") == "5.50 ± 6.36 (n=2)"
    assert cell(table, "minilm_l6, sam", "ours, minilm_l6, over none") == "2.25 ± 0.35 (n=2)"
    assert cell(table, "minilm_l6, sam", "ours, minilm_l6, over none", "MRPC") == "not run"
    assert [row[1] for row in table.rows if row[0] == "minilm_l6, sam"] == [
        *("ours, minilm_l6, minutes", "ours, minilm_l6, over none")
    ]


def test_it_is_the_time_of_an_update(tmp_path: Path) -> None:
    timed(tmp_path, "none", 1, 60.0, updates=100)
    timed(tmp_path, "sam", 1, 120.0, updates=100)
    timed(tmp_path, "per_instance", 1, 1200.0, updates=200)
    table = table_6([tmp_path])
    system = "minilm_l6, per_instance"
    assert cell(table, system, "ours, minilm_l6, over none") == "10.00 (n=1)"
    assert cell(table, system, "ours, minilm_l6, over sam") == "5.00 (n=1)"


def test_it_is_processor_time_where_both_have_it_and_no_gpu_ran(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        hardware = {"cpu": "c", "cores": 2, **({"gpus": ["H"]} if seed == 2 else {})}
        known: dict[str, object] = {} if seed == 3 else {"processor": 60.0}
        timed(tmp_path, "none", seed, 600.0, hardware=hardware, **known)
        timed(tmp_path, "sam", seed, 900.0, hardware=hardware, processor=120.0)
    # 2.0, 1.5 and 1.5.
    found = cell(table_6([tmp_path]), "minilm_l6, sam", "ours, minilm_l6, over none")
    assert found == "1.67 ± 0.29 (n=3)"


@pytest.mark.parametrize(
    "change",
    [
        {"interruptions": 1},
        {"hardware": {"cpu": "another", "cores": 2}},
        {"hardware": {"cpu": "c", "cores": 2, "threads": 1}},
        {"hardware": {"cpu": "c", "cores": 2, "gpus": ["H"]}},
    ],
)
def test_what_does_not_compare_is_left_out(tmp_path: Path, change: dict[str, object]) -> None:
    for seed in (1, 2):
        timed(tmp_path, "none", seed, 60.0)
        timed(tmp_path, "sam", seed, 120.0 * seed, **(change if seed == 2 else {}))
    table = table_6([tmp_path])
    assert cell(table, "minilm_l6, sam", "ours, minilm_l6, over none") == "2.00 (n=1)"


def test_a_model_of_the_paper_stands_beside_it(tmp_path: Path) -> None:
    for method, seconds in (("none", 60.0), ("sam", 120.0), ("random", 150.0)):
        timed(tmp_path, method, 1, seconds, model="bert_base_uncased")
    table = table_6([tmp_path])
    assert cell(table, "BERT-base, SAM", "ours, bert_base_uncased, over none") == "2.00 (n=1)"
    # The paper has no times for these, so they come behind its rows.
    for method, minutes in (("none", "1.00"), ("random", "2.50")):
        system = f"bert_base_uncased, {method}"
        assert cell(table, system, "ours, bert_base_uncased, minutes") == f"{minutes} (n=1)"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "6", "--sweeps", str(tmp_path)]) == 0
    assert "deltasam bench step" in capsys.readouterr().out
