"""Which runs a sweep has: methods, seeds and grids as they are typed."""

import pytest

from deltasam_fairseq.cli.main import main
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.sweep_plan import plan, read_grid, read_seeds


def test_what_means_nothing_to_a_method_is_left_out() -> None:
    methods = ["none", "sam", "delta_sam", "random"]
    grid = {"rho": ["0.01", "0.05"], "eta": ["1e-4"], "lr": ["1"]}
    names = [cell.name for cell in plan(methods, [1], grid)]
    assert names == [
        "none-lr1-seed1",
        *(f"sam-rho{rho}-lr1-seed1" for rho in grid["rho"]),
        *(f"delta_sam-rho{rho}-eta1e-4-lr1-seed1" for rho in grid["rho"]),
        *(f"random-rho{rho}-lr1-seed1" for rho in grid["rho"]),
    ]
    assert plan(["sam"], [1], {"rho": ["0.1"], "lr": ["2"]})[0].overrides() == [
        *("--sam-rho", "0.1", "--lr", "2")
    ]


def test_a_rival_has_its_own_values_in_a_grid() -> None:
    grid = read_grid(["rho=0.1", "r3f-lambda=5", "rdrop-alpha=0.5", "freelb-lr=0.2", "clip-norm=1"])
    cells = plan(["none", "rdrop+sam", "freelb+r3f"], [1], grid)
    assert [cell.name for cell in cells] == [
        "none-clip-norm1-seed1",
        "sam+rdrop-rho0.1-rdrop-alpha0.5-clip-norm1-seed1",
        "r3f+freelb-r3f-lambda5-clip-norm1-freelb-lr0.2-seed1",
    ]
    assert cells[1].overrides()[2:4] == ["--regularizer-weight", "0.5"]
    with pytest.raises(UserError, match="--regularizer-weight of the method r3f is searched twice"):
        plan(["r3f"], [1], read_grid(["r3f-lambda=1", "regularizer-weight=1"]))


def test_seeds_come_one_after_another() -> None:
    names = [cell.name for cell in plan(["none", "sam"], [1, 2], {})]
    assert names == ["none-seed1", "sam-seed1", "none-seed2", "sam-seed2"]


@pytest.mark.parametrize("text", ["", "a", "0", "3-1", "1,,2", "1-", "-2"])
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="is no seed; write numbers"):
        read_seeds(text)


@pytest.mark.parametrize("entries", [["rho"], ["=1"], ["rho="], ["rho=1,,2"]])
def test_grids_that_are_none(entries: list[str]) -> None:
    with pytest.raises(UserError, match="write NAME=VALUE,VALUE"):
        read_grid(entries)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("rho=abc", "rho abc: not a number greater than zero"),
        ("rho=nan", "rho nan: not a number"),
        ("sam-eta=-0.5", "eta -0.5: not a number"),
        ("rho=0", "rho 0: not a number"),
        ("adam-betas=(0.9,0.98)", r"'\(0\.9' cannot be searched, since folders are called by it"),
        ("restore-file=a/b", "'a/b' cannot be searched"),
        ("--lr=1", "write NAME=VALUE"),
    ],
)
def test_values_that_cannot_be_searched(entry: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_grid([entry])


def test_a_grid_has_one_name_for_each_point() -> None:
    one = read_grid(["clip-norm=1", "sam-eta=1e-4", "rho=0.05,5e-2,.05,0.1", "arch=b"])
    assert list(one.items()) == [
        *(("rho", ["0.05", "0.1"]), ("eta", ["1e-4"])),
        *(("arch", ["b"]), ("clip-norm", ["1"])),
    ]
    assert one == read_grid(["arch=b", "rho=0.05,0.1", "eta=1e-4", "clip-norm=1"])


def test_a_grid_has_each_name_once() -> None:
    with pytest.raises(UserError, match="rho is given twice"):
        read_grid(["rho=1", "sam-rho=2"])
    with pytest.raises(UserError, match="unknown method 'delta'; did you mean 'delta_sam'"):
        plan(["delta"], [1], {})


def test_a_grid_may_be_given_in_parts(capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["sweep", "glue/rte", "--model", "minilm_l6", "--methods", "delta_sam", "--seeds", "1"]
    assert main([*typed, "--grid", "rho=0.1", "--grid", "eta=1,2", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "delta_sam-rho0.1-eta1-seed1",
        "delta_sam-rho0.1-eta2-seed1",
    ]
