import sys
from pathlib import Path

import pytest

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.plugin_path import plugin_dir
from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.command import generate_command, merge_flags, train_command

RECIPE = Recipe(
    name="small",
    version=1,
    description="",
    prepare="",
    flags={
        "task": "translation",
        "source-lang": "source",
        "target-lang": "target",
        "lr": 0.1,
        "fp16": False,
        "share-all-embeddings": True,
        "adam-betas": "(0.9, 0.98)",
    },
    methods={"sam": {"sam-rho": 0.1, "lr": 0.2}},
    generation={"beam": 4},
)


def built(method: str = "none", overrides: tuple[str, ...] = ()) -> list[str]:
    return train_command(
        RECIPE, data=Path("d/bin"), save_dir=Path("r"), method=method, seed=3, overrides=overrides
    )


def test_train_command_in_full() -> None:
    assert built() == [
        *(sys.executable, "-m", "fairseq_cli.train", "d/bin", "--user-dir", str(plugin_dir())),
        *("--task", "translation", "--source-lang", "source", "--target-lang", "target"),
        *("--lr", "0.1", "--share-all-embeddings", "--adam-betas", "(0.9, 0.98)"),
        *("--sam-method", "none", "--seed", "3", "--save-dir", "r"),
    ]


def test_a_method_adds_and_changes_flags() -> None:
    command = built("sam")
    assert command[command.index("--lr") + 1] == "0.2"
    assert command[command.index("--sam-rho") + 1] == "0.1"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_passed_on(method: str) -> None:
    command = built(method)
    assert command[command.index("--sam-method") + 1] == method


def test_overrides_replace_and_append() -> None:
    command = built("sam", ("--lr=0.3", "--lr-shrink", "0.5", "--sam-rho", "7", "--cpu"))
    assert command.count("--lr") == command.count("--sam-rho") == 1
    assert command[command.index("--lr") + 1] == "0.3"
    assert command[command.index("--sam-rho") + 1] == "7"
    assert command[-3:] == ["--lr-shrink", "0.5", "--cpu"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--seed=7", "--seed cannot be given as a flag of fairseq, .* --seeds of deltasam sweep"),
        ("--sam-method=sam", "--sam-method cannot be given .* --method of deltasam train"),
        ("--save-dir=d", "--save-dir cannot be given .* --out of deltasam sweep"),
        ("--user-dir=d", "--user-dir cannot be given .* always the plugin's own"),
    ],
)
def test_what_a_run_is_cannot_be_overridden(typed: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        built("sam", (typed,))


@pytest.mark.parametrize(
    ("flags", "typed", "merged"),
    [
        ({}, ["--a", "1", "2", "--b"], ["--a", "1", "2", "--b"]),
        ({"a": 1}, ["--a", "-1"], ["--a", "-1"]),
        ({"a": 1}, ["--a", "2", "--a", "3"], ["--a", "3"]),
        ({"a": 1}, ["--b=x=y"], ["--a", "1", "--b", "x=y"]),
        ({"a": True, "b": False}, ["--b"], ["--a", "--b"]),
        ({"a": True}, ["--a"], ["--a"]),
        ({"a": ""}, [], ["--a", ""]),
    ],
)
def test_merge_flags(
    flags: dict[str, str | int | bool], typed: list[str], merged: list[str]
) -> None:
    assert merge_flags(flags, typed) == merged


def test_an_argument_that_is_no_flag() -> None:
    with pytest.raises(UserError, match="unexpected argument '0.1'.*start with --"):
        built(overrides=("0.1",))


def test_an_unknown_method() -> None:
    with pytest.raises(UserError, match="unknown method 'asam'; did you mean 'sam'\\? Known: del"):
        built("asam")


def test_generate_command_in_full() -> None:
    command = generate_command(
        RECIPE, data=Path("d"), checkpoint=Path("c.pt"), split="test", overrides=("--beam", "1")
    )
    assert command == [
        *(sys.executable, "-m", "deltasam_fairseq.inference", "generate", "d"),
        *("--user-dir", str(plugin_dir())),
        *("--task", "translation", "--source-lang", "source", "--target-lang", "target"),
        *("--beam", "1", "--path", "c.pt", "--gen-subset", "test"),
        *("--required-batch-size-multiple", "1"),
    ]
