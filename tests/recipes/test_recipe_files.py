"""Recipes of other people: from a file, and from an installed package."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.cli import prepare
from deltasam_fairseq.cli import recipes as cli_recipes
from deltasam_fairseq.cli import train as cli_train
from deltasam_fairseq.cli.main import main
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes import catalogue
from deltasam_fairseq.recipes.base import Model, Recipe
from deltasam_fairseq.recipes.catalogue import RECIPES, find_recipe, load_file, register_recipe
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.training import TrainRequest
from deltasam_fairseq.registry import Registry, UnknownName
from tests.support.prepared_data import finished_data

FILE = """\
from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.catalogue import register_recipe


@register_recipe
def mine():
    return Recipe("{name}", 1, "one of mine", "deltasam prepare text", {{"lr": 0.1}})
"""

#: What a file may begin with: dataclasses look up the module that they are in.
DATACLASS = """\
from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Size:
    layers: int


"""


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Registry[Recipe]:
    """Give the test a registry of its own: what it registers is gone afterwards."""
    registry: Registry[Recipe] = Registry("recipe")
    for name, recipe in RECIPES.items():
        registry.register(name, description=recipe.description)(recipe)
    for module in (catalogue, prepare, cli_recipes):
        monkeypatch.setattr(module, "RECIPES", registry)
    return registry


def write(folder: Path, name: str) -> Path:
    path = folder / "recipes.py"
    path.write_text(FILE.format(name=name))
    return path


def test_a_file_registers_and_a_second_time_does_nothing(
    tmp_path: Path, own_registry: Registry[Recipe]
) -> None:
    path = write(tmp_path, "mine/one")
    assert load_file(path) == ["mine/one"]
    assert load_file(path) == ["mine/one"]
    assert own_registry.get("mine/one").description == "one of mine"
    assert find_recipe("mine/one", path).flags == {"lr": 0.1}


def test_a_file_may_define_dataclasses(tmp_path: Path) -> None:
    path = write(tmp_path, "mine/sized")
    path.write_text(DATACLASS + path.read_text())
    assert load_file(path) == ["mine/sized"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such Python file"),
        ("x = 1", "registers no recipe; put @register_recipe"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_that_is_none_says_why(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "broken.py"
    if content is not None:
        path.write_text(content)
    before = set(sys.modules)
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            load_file(path)
    assert set(sys.modules) == before


def test_what_is_registered_must_be_a_recipe() -> None:
    with pytest.raises(TypeError, match="wrong returned 3, not a Recipe"):

        @register_recipe
        def wrong() -> Any:
            return 3


def test_two_recipes_cannot_share_a_name() -> None:
    with pytest.raises(ValueError, match="'text' is taken"):

        @register_recipe
        def again() -> Recipe:
            return Recipe("text", 1, "another", "", {})


@pytest.mark.parametrize("as_one", [True, False])
def test_the_option_stands_behind_any_verb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_one: bool
) -> None:
    path = write(tmp_path, f"mine/{as_one}")
    option = [f"--recipe-file={path}"] if as_one else ["--recipe-file", str(path)]
    assert main(["recipes", *option, f"mine/{as_one}"]) == 0
    assert "one of mine" in capsys.readouterr().out
    assert main(["recipes", "--recipe-file"]) == 2
    assert "needs a file behind it" in capsys.readouterr().err


def test_a_run_on_texts_keeps_its_recipe_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one on sentences does: evaluate finds the recipe by it."""
    path, data = write(tmp_path, "mine/letters"), finished_data(tmp_path / "data")
    asked: list[TrainRequest] = []
    monkeypatch.setattr(cli_train, "train", lambda request, **_: asked.append(request))
    words = ["--data", str(data.path), "--save-dir", str(tmp_path / "run")]
    assert main(["train", "mine/letters", "--recipe-file", str(path), *words]) == 0
    assert asked[0].facts()["recipe_file"] == str(path)


@pytest.mark.parametrize("verb", ["evaluate", "export --out out", "analyse hard-sentences"])
def test_a_recipe_file_that_was_moved_can_be_given(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = write(tmp_path, "mine/moved"), RunFolder(tmp_path / "run")
    facts = {"recipe": "mine/moved", "recipe_file": "gone.py", "data": "nowhere", "starts": []}
    run.write_record({**facts, "finished": True})
    assert main([*verb.split(), str(run.path), "--recipe-file", str(path)]) == 2
    assert "nowhere is not a finished data folder" in capsys.readouterr().err


@pytest.mark.parametrize("second", ["--recipe-file=b.py", "--recipe-file b.py"])
def test_a_second_file_is_refused_whatever_the_verb(
    second: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = ["--recipe-file", str(write(tmp_path, "mine/twice"))]
    for verb in (["recipes"], ["train", "mine/twice"]):
        assert main([*verb, *first, *second.split()]) == 2
        assert "--recipe-file can be given once; import" in capsys.readouterr().err


def own_task(registry: Registry[Recipe], **changes: Any) -> None:
    """Register RTE once more, with changes."""
    recipe = replace(RECIPES.get("glue/rte"), **changes)
    registry.register(recipe.name, description=recipe.description)(recipe)


def test_a_description_may_have_a_per_cent_sign(
    own_registry: Registry[Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    own_task(own_registry, name="mine/tenth", description="10% of the reviews, %(prog)s")
    with pytest.raises(SystemExit) as stop:
        main(["prepare", "--help"])
    assert stop.value.code == 0
    assert "10% of the reviews, %(prog)s" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["bart", "encoder", "cnndm", "text"])
def test_a_task_cannot_be_named_as_what_is_prepared_already(
    name: str,
    own_registry: Registry[Recipe],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(own_registry, "_entries", {})
    own_task(own_registry, name=name)
    assert main(["prepare", "bart", "checkpoint"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"deltasam: the recipe {name!r} is named as deltasam prepare {name}")
    assert "rename the recipe, to my/" in error


METHODS: Mapping[str, Mapping[str, float]] = {"sam": {"sam-rho": 0.1}}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("delta-sam", "unknown method 'delta-sam'; did you mean 'delta_sam'. Known: delta_sam, fr"),
        ("random", "'random' runs with the flags of 'delta_sam'; put them there"),
        ("r3f+sam", r"'r3f\+sam'; write it as 'sam\+r3f'"),
        ("sam+delta_sam", "more than one perturbation of the weights .sam, delta_sam."),
    ],
)
def test_flags_of_an_unknown_method_are_not_dropped(name: str, message: str) -> None:
    methods = {**METHODS, name: {"sam-rho": 0.1}}
    with pytest.raises(UserError, match=f"^the recipe mine/x has flags for .*{message}"):
        Recipe("mine/x", 1, "one of mine", "", {}, methods=methods)
    with pytest.raises(UserError, match=f"^the model 'small' has flags for .*{message}"):
        Recipe("mine/x", 1, "", "", {}, models={"x": Model("small", {}, methods=methods)})


def test_a_file_with_an_unknown_method_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "mine/typo")
    path.write_text(path.read_text().replace("0.1})", "0.1}, {'dam': {'sam-rho': 1}})"))
    with pytest.raises(UserError, match="recipes.py: the recipe mine/typo has .*you mean 'sam'"):
        load_file(path)


class Point:
    value = "theirs"
    dist = None

    def __init__(self, load: Any) -> None:
        self.load = load


def test_installed_packages_name_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        register_recipe(lambda: Recipe("theirs", 1, "from a package", "", {}))

    monkeypatch.setattr(metadata, "entry_points", lambda group: [Point(load)])
    assert find_recipe("theirs").description == "from a package"


def test_a_package_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        json.loads("{")

    monkeypatch.setattr(metadata, "entry_points", lambda group: [Point(load)])
    with pytest.raises(UserError, match="recipes of the package theirs .* cannot be loaded: JSON"):
        find_recipe("theirs")


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'glue/rte'"):
        find_recipe("glue/rtee")
    with pytest.raises(
        UserError, match="has no model 'roberta_larg'; did you mean 'roberta_large'"
    ):
        find_recipe("glue/rte").with_model("roberta_larg")
