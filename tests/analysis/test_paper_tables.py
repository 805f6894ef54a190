"""Tables 1 and 4 from records: published numbers, ours, differences, and what was not run."""

from pathlib import Path

import pytest

from deltasam_fairseq.analysis.paper_tables import table_1, table_4
from deltasam_fairseq.analysis.records import collect
from deltasam_fairseq.analysis.table import FORMATS, Table, mean_and_std
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.published import TABLE_1, TABLE_4
from deltasam_fairseq.recipes.published import TASKS as GLUE_TASKS
from tests.support.sweep_records import write_record


def rows(table: Table, system: str) -> list[tuple[str, ...]]:
    return [row for row in table.rows if row[0] == system]


def column(table: Table, name: str) -> int:
    return table.header.index(name)


def test_without_records_all_published_numbers_and_nothing_of_ours(tmp_path: Path) -> None:
    table = table_1([tmp_path])
    printed = [row for row in table.rows if row[1] == "published"]
    assert len(printed) == sum(map(len, TABLE_1.values()))
    assert rows(table, "RoBERTa-large, δ-SAM")[0][2:] == (
        *("91.1", "92.5", "89.2", "95.1", "92.2", "71.1", "96.9", "92.7"),
        "90.1",
    )
    ours = [row for row in table.rows if row[1] != "published"]
    assert {cell for row in ours for cell in row[2:]} == {"not run"}
    assert "no sweep has a finished run" in table.note
    assert len(table_4([tmp_path]).rows) == 2 * len(TABLE_4["bert_base"])


def test_median_best_and_difference(tmp_path: Path) -> None:
    for seed, score in enumerate((70.0, 71.25, 73.0), start=1):
        write_record(tmp_path, "delta_sam", seed, score)
    table = table_1([tmp_path])
    rte = column(table, "RTE")
    cells = [row[rte] for row in rows(table, "BERT-base, δ-SAM")]
    assert cells == ["72.2", "71.25 (n=3)", "73.00 (n=3)", "+0.80"]
    assert rows(table, "BERT-base, δ-SAM")[1][column(table, "MNLI")] == "not run"
    assert rows(table, "BERT-base, δ-SAM")[1][-1] == "-"
    assert "seeds 1,2,3" in table.note


def test_a_published_median_is_compared_with_our_median(tmp_path: Path) -> None:
    for seed, score in enumerate((90.0, 90.9, 94.0), start=1):
        for task in GLUE_TASKS:
            recipe = f"glue/{task}"
            write_record(tmp_path, "none", seed, score, recipe=recipe, model="roberta_large")
            write_record(tmp_path, "sam", seed, score, recipe=recipe, model="roberta_large")
    table = table_1([tmp_path])
    (vanilla,) = (row for row in rows(table, "RoBERTa-large, vanilla") if "- published" in row[1])
    assert vanilla[1] == "ours, roberta_large, median - published"
    assert vanilla[column(table, "MRPC")] == "+0.00"  # published: 90.9
    assert vanilla[-1] == "+2.00"  # 90.9 - 88.9
    (sam,) = (row for row in rows(table, "RoBERTa-large, SAM") if "- published" in row[1])
    assert sam[1] == "ours, roberta_large, best - published"
    assert sam[column(table, "MRPC")] == "+2.60"  # 94.0 - 91.4
    assert sam[-1] == "+4.40"  # 94.0 - 89.6


def test_recipes_of_other_tasks_are_named_and_left_out(tmp_path: Path) -> None:
    write_record(tmp_path, "none", 1, 60.0, recipe="my/reviews", model="minilm_l6")
    write_record(tmp_path, "none", 2, 61.0, recipe="my/reviews", model="minilm_l6")
    note = "no sweep has a finished run yet. Not in this table, but in deltasam table grid: my/rev"
    assert note in table_1([tmp_path]).note
    write_record(tmp_path, "none", 1, 60.0)
    assert "Ours: best" in table_1([tmp_path]).note
    assert "grid: my/reviews." in table_4([tmp_path]).note


def test_methods_with_other_seeds_are_not_compared(tmp_path: Path) -> None:
    for method, seeds in {"none": (1, 2), "delta_sam": (1, 2)}.items():
        for seed in seeds:
            write_record(tmp_path, method, seed, 70.0)
    assert "not comparable" not in table_1([tmp_path]).note
    write_record(tmp_path, "none", 3, 80.0)
    assert "have different seeds: their rows are not comparable" in table_1([tmp_path]).note


def test_of_a_grid_the_point_with_the_best_median_among_those_with_most_seeds(
    tmp_path: Path,
) -> None:
    for rho, scores in {"0.01": (60, 70), "0.02": (66, 66), "0.05": (99,)}.items():
        for seed, score in enumerate(scores, start=1):
            write_record(tmp_path, "sam", seed, score, grid={"rho": rho})
    (group,) = collect([tmp_path]).values()
    assert group.grid == {"rho": "0.02"}
    assert group.points == 2  # that of 0.05 has fewer seeds, so it was not chosen from
    assert "rho 0.02, seeds 1,2" in table_1([tmp_path]).note


def test_other_models_have_rows_of_their_own_in_the_order_of_methods(tmp_path: Path) -> None:
    for method in ("random", "none", "delta_sam"):
        write_record(tmp_path, method, 1, 60.0, model="minilm_l6")
    table = table_1([tmp_path])
    systems = [row[0] for row in table.rows if row[0].startswith("minilm_l6")]
    assert systems[::2] == ["minilm_l6, none", "minilm_l6, delta_sam", "minilm_l6, random"]
    assert rows(table, "BERT-base, vanilla")[1][column(table, "RTE")] == "not run"


def test_methods_that_the_paper_has_no_row_for_are_shown_for_its_models_too(tmp_path: Path) -> None:
    found = {"risk": 0.5, "rho": 0.05, "split": "valid"}
    for method in ("sam", "random", "per_instance"):
        write_record(tmp_path, method, 1, 60.0, adversarial_risk=found)
    systems = dict.fromkeys(row[0] for row in table_1([tmp_path]).rows)
    assert list(systems)[-2:] == ["bert_base_cased, per_instance", "bert_base_cased, random"]
    systems = dict.fromkeys(row[0] for row in table_4([tmp_path]).rows)
    assert list(systems)[-1] == "bert_base_cased, random"
    assert "bert_base_cased, per_instance" not in systems


def test_rivals_have_rows_of_ours_and_sums_follow(tmp_path: Path) -> None:
    for method in ("sam+r3f", "r3f", "smart", "delta_sam+rdrop"):
        write_record(tmp_path, method, 1, 90.0, model="roberta_large")
    table = table_1([tmp_path])
    cells = {
        name: [row[column(table, "RTE")] for row in rows(table, name)] for name, *_ in table.rows
    }
    assert cells["RoBERTa-large, R3F"] == ["88.5", *["90.00 (n=1)"] * 2, "+1.50"]
    assert cells["RoBERTa-large, SMART"][-1] == "-2.00"  # 92.0*
    assert cells["RoBERTa-large, FreeLB"] == ["88.1", "not run"]
    assert list(cells)[-2:] == ["roberta_large, sam+r3f", "roberta_large, delta_sam+rdrop"]
    own = table_1([tmp_path], model="roberta_large").rows
    assert own == [row for row in table.rows if row[0].lower().startswith("roberta")]


def test_table_4_has_risk_median_and_best(tmp_path: Path) -> None:
    for seed, risk in ((1, 0.5), (2, 0.7)):
        found = {"risk": risk, "rho": 0.05, "split": "valid"}
        write_record(tmp_path, "sam", seed, 60.0 + seed, adversarial_risk=found)
    write_record(tmp_path, "sam", 1, 80.0, recipe="glue/mrpc")
    published, ours, difference = rows(table_4([tmp_path]), "BERT-base, SAM")
    assert published[2:] == ("0.62", "86.8/88.2", "0.78", "68.6/69.3")
    assert ours[2:] == ("not run", "80.00/80.00 (n=1)", "0.600 (n=2)", "61.50/62.00 (n=2)")
    assert difference[2:] == ("-", "-6.80/-8.20", "-0.18", "-7.10/-7.30")
    assert "rho 0.05, split valid" in table_4([tmp_path]).note


@pytest.mark.parametrize(
    "what", ["data_sha256", "signature", "n", "encoder_sha256", "recipe_version"]
)
def test_a_cell_does_not_mix_what_does_not_compare(tmp_path: Path, what: str) -> None:
    write_record(tmp_path, "sam", 1, 60.0)
    write_record(tmp_path, "sam", 2, 60.0, **{what: "another"})
    with pytest.raises(UserError, match=f"the records differ in {what}"):
        table_1([tmp_path])


@pytest.mark.parametrize("other", [{"rho": 0.5}, {"split": "test"}])
def test_risks_of_different_kinds_have_no_mean(tmp_path: Path, other: dict[str, object]) -> None:
    found = {"risk": 0.5, "rho": 0.05, "split": "valid"}
    write_record(tmp_path, "sam", 1, 60.0, adversarial_risk=found)
    write_record(tmp_path, "none", 1, 60.0)
    assert table_4([tmp_path]).rows
    write_record(tmp_path, "none", 2, 60.0, adversarial_risk={**found, **other})
    with pytest.raises(UserError, match="adversarial risks of different kinds .rho 0.05 on "):
        table_4([tmp_path])


def test_a_cell_has_each_seed_once(tmp_path: Path) -> None:
    write_record(tmp_path / "a", "sam", 1, 60.0)
    write_record(tmp_path / "b", "sam", 1, 61.0)
    with pytest.raises(UserError, match="two records have the same seed; name one of the sweeps"):
        table_1([tmp_path])
    assert table_1([tmp_path / "a"]).rows


def test_statistics_are_mean_and_deviation_over_seeds_where_asked_for(tmp_path: Path) -> None:
    for seed, (score, risk) in enumerate(((70.0, 0.5), (71.0, 0.6), (75.0, 0.7)), start=1):
        found = {"risk": risk, "rho": 0.05, "split": "valid"}
        write_record(tmp_path, "sam", seed, score, adversarial_risk=found)
    table = table_1([tmp_path], statistics=True)
    (row,) = [row for row in table.rows if row[1].endswith("mean ± std")]
    assert row[0] == "BERT-base, SAM"
    assert row[column(table, "RTE")] == "72.00 ± 2.65 (n=3)"
    assert row[column(table, "MNLI")] == "not run"
    (row,) = [r for r in table_4([tmp_path], statistics=True).rows if r[1].endswith("± std")]
    assert row[2:] == ("not run", "not run", "0.600 ± 0.100 (n=3)", "72.00 ± 2.65 (n=3)")
    assert not any("±" in cell for row in table_1([tmp_path]).rows for cell in row)


def test_one_seed_has_no_deviation() -> None:
    assert mean_and_std([70.0]) == "70.00 (n=1)"
    assert mean_and_std([]) == "not run"


@pytest.mark.parametrize("style", FORMATS)
def test_every_format_has_every_row(tmp_path: Path, style: str) -> None:
    write_record(tmp_path, "sam", 1, 60.0)
    table = table_1([tmp_path])
    text = FORMATS[style](table)
    assert text.count("best - published") == 1
    assert len(text.splitlines()) >= len(table.rows) + 1
