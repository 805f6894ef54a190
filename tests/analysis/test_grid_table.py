"""Every point of a search is shown, and records that are no points of one search are refused."""

from pathlib import Path

import pytest

from deltasam_fairseq.analysis.grid_table import grid_table
from deltasam_fairseq.analysis.records import collect
from deltasam_fairseq.errors import UserError
from tests.support.sweep_records import write_record


def flags(method: str, **more: str) -> dict[str, str]:
    return {
        "sam-method": method,
        "lr": "1e-05",
        **{k.replace("_", "-"): v for k, v in more.items()},
    }


def test_one_row_per_point_with_rho_and_eta_where_they_matter(tmp_path: Path) -> None:
    both = {"sam_rho": "0.05", "sam_eta": "1e-4"}
    risk = {"risk": 0.5, "rho": 0.05, "split": "valid"}
    write_record(tmp_path, "delta_sam", 1, 70.0, flags=flags("delta_sam", **both))
    write_record(tmp_path, "none", 1, 60.0, flags=flags("none", **both))
    write_record(tmp_path, "none", 2, 63.0, flags=flags("none", **both), adversarial_risk=risk)
    for rho in ("0.05", "0.2", "0.1"):
        values = flags("delta_sam", sam_rho=rho, sam_eta="1e-4", clip_norm=rho)
        grid = {"rho": rho, "clip-norm": rho}
        write_record(tmp_path, "delta_sam", 1, 80.0, grid=grid, flags=values)
    table = grid_table([tmp_path])
    assert [row[2:5] for row in table.rows] == [
        ("none", "-", "1,2"),
        ("delta_sam", "rho 0.05, eta 1e-4", "1"),
        ("delta_sam", "rho 0.05, eta 1e-4, clip-norm 0.05", "1"),
        ("delta_sam", "rho 0.1, eta 1e-4, clip-norm 0.1", "1"),
        ("delta_sam", "rho 0.2, eta 1e-4, clip-norm 0.2", "1"),
    ]
    assert table.rows[0][5:] == ("accuracy", "61.50", "63.00", "61.50 ± 2.12 (n=2)", "0.500 (n=1)")
    assert table.rows[1][-1] == "not run"


def test_one_recipe_or_model_alone(tmp_path: Path) -> None:
    write_record(tmp_path, "none", 1, 60.0)
    write_record(tmp_path, "none", 1, 61.0, model="minilm_l6")
    write_record(tmp_path, "none", 1, 62.0, recipe="glue/mrpc")
    assert [row[:2] for row in grid_table([tmp_path]).rows] == [
        ("glue/mrpc", "bert_base_cased"),
        ("glue/rte", "bert_base_cased"),
        ("glue/rte", "minilm_l6"),
    ]
    assert [row[6] for row in grid_table([tmp_path], recipe="glue/mrpc").rows] == ["62.00"]
    assert [row[6] for row in grid_table([tmp_path], model="minilm_l6").rows] == ["61.00"]
    with pytest.raises(
        UserError, match=r"no finished run of 'glue/mrcp'; did you mean 'glue/mrpc'"
    ):
        grid_table([tmp_path], recipe="glue/mrcp")
    with pytest.raises(UserError, match=r"no finished run of 'minilm'; did you mean 'minilm_l6'"):
        grid_table([tmp_path], model="minilm")
    with pytest.raises(UserError, match="no finished run below"):
        grid_table([tmp_path], recipe="glue/mrpc", model="minilm_l6")
    write_record(tmp_path, "delta-sam", 1, 62.0, recipe="glue/mrpc")
    with pytest.raises(
        UserError, match="has an unknown method 'delta-sam'; did you mean 'delta_sam'"
    ):
        grid_table([tmp_path])
    with pytest.raises(UserError, match="no finished run below"):
        grid_table([tmp_path / "none"])


def test_records_of_one_point_have_the_same_flags(tmp_path: Path) -> None:
    write_record(tmp_path, "sam", 1, 60.0, flags=flags("sam", seed="1", save_dir="a"))
    write_record(tmp_path, "sam", 2, 61.0, flags={**flags("sam", seed="2"), "lr": "1e-5"})
    (group,) = collect([tmp_path]).values()
    assert group.scores == [60.0, 61.0]
    write_record(tmp_path, "sam", 3, 62.0, flags=flags("sam", max_epoch="3"))
    with pytest.raises(UserError, match=r"sam: the records differ in --max-epoch \(3, not given\)"):
        collect([tmp_path])


def test_points_differ_in_what_was_searched_alone(tmp_path: Path) -> None:
    write_record(tmp_path, "sam", 1, 60.0, flags=flags("sam", sam_rho="0.05"))
    write_record(tmp_path, "sam", 1, 61.0, grid={"rho": "0.1"}, flags=flags("sam", sam_rho="0.1"))
    assert len(grid_table([tmp_path]).rows) == 2
    other = flags("sam", sam_rho="0.2", clip_norm="1.0")
    write_record(tmp_path, "sam", 1, 62.0, grid={"rho": "0.2"}, flags=other)
    with pytest.raises(UserError, match=r"--clip-norm \(1\.0, not given\) and not by a grid"):
        grid_table([tmp_path])


def test_a_flag_that_was_searched_once_still_separates_records_without_a_grid(
    tmp_path: Path,
) -> None:
    write_record(tmp_path, "sam", 1, 60.0, flags=flags("sam", sam_rho="0.05"))
    write_record(tmp_path, "sam", 1, 61.0, grid={"rho": "0.1"}, flags=flags("sam", sam_rho="0.1"))
    write_record(tmp_path, "sam", 2, 62.0, flags=flags("sam", sam_rho="0.02"))
    with pytest.raises(UserError, match=r"--sam-rho \(0\.02, 0\.05\)"):
        collect([tmp_path])
