"""Comparisons from records: pairs of seeds, two tests, and what makes a pair unequal."""

from pathlib import Path

import pytest

from deltasam_fairseq.analysis.significance import significance
from deltasam_fairseq.analysis.table import FORMATS, Table
from deltasam_fairseq.cli.main import main
from deltasam_fairseq.errors import UserError
from tests.support.sweep_records import examples, write_record


def cells(table: Table, comparison: str) -> dict[str, str]:
    (row,) = [row for row in table.rows if row[0] == comparison]
    return dict(zip(table.header, row, strict=True))


def test_differences_are_taken_seed_by_seed(tmp_path: Path) -> None:
    for seed, (base, score) in enumerate(((60, 61), (70, 72), (50, 53)), start=1):
        write_record(tmp_path, "none", seed, base)
        write_record(tmp_path, "sam", seed, score)
    found = cells(significance([tmp_path]), "sam - none")
    assert found["recipe"] == "glue/rte"
    assert found["model"] == "bert_base_cased"
    # 1, 2 and 3: the spread between seeds, of ten points, is not in it.
    assert (found["n"], found["difference"], found["std"]) == ("3", "+2.00", "1.00")
    assert (found["p seeds"], found["least p"]) == ("0.2500", "0.2500")
    assert (found["95 % sentences"], found["p sentences"]) == ("-", "-")


def test_only_seeds_of_both_count_and_the_others_are_named(tmp_path: Path) -> None:
    for method, seeds in (("none", (1, 2, 3)), ("sam", (2, 3, 9))):
        for seed in seeds:
            write_record(tmp_path, method, seed, 60 + seed + (method == "sam"))
    table = significance([tmp_path])
    assert cells(table, "sam - none")["n"] == "2"
    assert cells(table, "sam - none")["difference"] == "+1.00"
    assert "sam - none: seeds 1,9 left out, which one of the two lacks." in table.note


def test_delta_sam_is_compared_with_random_as_well_and_the_base_can_be_chosen(
    tmp_path: Path,
) -> None:
    for number, method in enumerate(("none", "sam", "delta_sam", "random")):
        write_record(tmp_path, method, 1, 60 + number)
    table = significance([tmp_path])
    assert [row[0] for row in table.rows] == [
        *("sam - none", "delta_sam - none", "delta_sam - random", "random - none")
    ]
    assert cells(table, "delta_sam - random")["difference"] == "-1.00"
    assert "The table has 4 comparisons" in table.note
    against_sam = significance([tmp_path], base="sam")
    assert [row[0] for row in against_sam.rows] == [
        *("none - sam", "delta_sam - sam", "random - sam")
    ]


def test_recipes_and_models_can_be_chosen(tmp_path: Path) -> None:
    for recipe in ("glue/rte", "glue/mrpc"):
        for model in ("bert_base_cased", "minilm_l6"):
            for method in ("none", "sam"):
                write_record(tmp_path, method, 1, 60, recipe=recipe, model=model)
    assert len(significance([tmp_path]).rows) == 4
    (row,) = significance([tmp_path], recipe="glue/mrpc", model="minilm_l6").rows
    assert row[1:3] == ("glue/mrpc", "minilm_l6")
    with pytest.raises(UserError, match="no finished run of 'glue/cola'"):
        significance([tmp_path], recipe="glue/cola")


def test_sentences_are_tested_where_all_records_have_them(tmp_path: Path) -> None:
    labels = [1.0] * 40
    right = {"none": (20, 22), "sam": (34, 36)}
    for method, counts in right.items():
        for seed, count in enumerate(counts, start=1):
            kept = examples([1] * count + [0] * (40 - count), labels)
            write_record(tmp_path, method, seed, 2.5 * count, examples=kept)
    found = cells(significance([tmp_path]), "sam - none")
    assert found["difference"] == "+35.00"
    assert float(found["p sentences"]) < 0.001
    low, high = map(float, found["95 % sentences"].split(" to "))
    assert 15 < low < 35 < high < 55
    assert found["p seeds"] == "0.5000"


def test_predictions_that_do_not_fit_their_record_stop(tmp_path: Path) -> None:
    for method in ("none", "sam"):
        write_record(tmp_path, method, 1, 50, examples=examples([1, 0], [1, 1]))
    assert significance([tmp_path]).rows
    write_record(tmp_path, "sam", 1, 50, examples=examples([1, 1], [1, 1]))
    with pytest.raises(UserError, match=r"give accuracy 100.00, its metrics say 50.00"):
        significance([tmp_path])
    write_record(tmp_path, "sam", 1, 50, examples=examples([1, 0], [0, 0]))
    with pytest.raises(UserError, match="has other sentences than that of another run"):
        significance([tmp_path])


@pytest.mark.parametrize("what", ["data_sha256", "signature", "n", "encoder_sha256"])
def test_methods_that_do_not_compare_stop(tmp_path: Path, what: str) -> None:
    write_record(tmp_path, "none", 1, 60)
    write_record(tmp_path, "sam", 1, 60, **{what: "another"})
    with pytest.raises(UserError, match=f"bert_base_cased: the records differ in {what}"):
        significance([tmp_path])


def test_what_differs_beside_the_method_is_named(tmp_path: Path) -> None:
    flags = {"lr": "1e-05", "max-epoch": "3", "save-dir": "a", "sam-method": "none"}
    for seed in (1, 2):
        write_record(tmp_path, "none", seed, 60, flags=flags, commit="abc")
    other = {**flags, "sam-method": "per_instance", "save-dir": "b"}
    for seed in (1, 2):
        write_record(tmp_path, "per_instance", seed, 60, flags=other, commit="abc")
    assert "they differ in" not in significance([tmp_path]).note
    other["max-epoch"] = "6"
    write_record(tmp_path, "per_instance", 1, 60, flags=other, commit="abc", updates=200)
    write_record(tmp_path, "per_instance", 2, 60, flags=other, commit="d", updates=200)
    note = significance([tmp_path]).note
    assert "they differ in commit (d and abc), max-epoch (6 and 3), updates (200 and 100)." in note


def test_a_radius_that_both_have_should_be_the_same(tmp_path: Path) -> None:
    for method, flags in {"none": {}, "random": {"sam-rho": "0.05"}}.items():
        write_record(tmp_path, method, 1, 60, flags=flags)
    for rho, said in (("0.05", False), ("5e-2", False), ("0.01", True)):
        write_record(tmp_path, "delta_sam", 1, 60, flags={"sam-rho": rho, "sam-eta": "1e-4"})
        note = significance([tmp_path]).note
        assert ("delta_sam - random: they differ in sam-rho (0.01 and 0.05)." in note) == said
        assert note.count("they differ") == said


def test_a_point_chosen_from_a_grid_is_named(tmp_path: Path) -> None:
    write_record(tmp_path, "none", 1, 60)
    for rho, score in (("0.01", 61), ("0.05", 63)):
        write_record(tmp_path, "sam", 1, score, grid={"rho": rho})
    table = significance([tmp_path])
    assert cells(table, "sam - none")["difference"] == "+3.00"
    assert "sam is the best of 2 points of a grid on these sentences (rho 0.05" in table.note


@pytest.mark.parametrize("style", FORMATS)
def test_the_command(tmp_path: Path, style: str, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("none", "sam"):
        write_record(tmp_path, method, 1, 60.0)
    arguments = ["table", "significance", "--sweeps", str(tmp_path), "--format", style]
    assert main([*arguments, "--recipe", "glue/rte", "--base", "none"]) == 0
    shown = capsys.readouterr().out
    assert "sam - none" in shown
    assert "1/16 for n = 5" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["4", "--model", "x"], "--model goes with 1 or grid or significance"),
        (["1", "--model", "x"], "no finished run of 'x'. Known: bert_base_cased, bert_base_unc"),
        (["4", "--base", "none"], "--base goes with significance"),
        (["significance", "--statistics"], "--statistics goes with 1 or 4"),
        (["significance", "--plot", "x"], "--plot goes with 1 or 4 or 6"),
        (["1", "--plot", "out.txt"], "out.txt: a figure ends in .png, .pdf or .svg"),
        (["run", "other", "--recipe", "x"], "--recipe goes with grid or significance"),
        (["significance", "--sweeps", "nowhere"], "--sweeps nowhere: no such folder"),
        (["1", "--published", "cnndm"], "--published goes with runs, not with table 1"),
        (
            ["5"],
            "no such run: 5; the tables that need no runs are 1, 2, 3, 4, 6, grid, significance",
        ),
        (["1", "4"], "no such run: 1, 4; the tables that need no runs are 1, 2, 3, 4, 6"),
    ],
)
def test_options_of_other_tables(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", *arguments]) == 2
    assert message in capsys.readouterr().err
