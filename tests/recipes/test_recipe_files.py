"""Recipes of other people: from a file, and from an installed package."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.cli.main import main
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes import catalogue
from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.catalogue import RECIPES, find_recipe, load_file, register_recipe
from deltasam_fairseq.registry import Registry, UnknownName

FILE = """\
from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.catalogue import register_recipe


@register_recipe
def mine():
    return Recipe("{name}", 1, "one of mine", "deltasam prepare text", {{"lr": 0.1}})
"""


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Registry[Recipe]:
    """Give the test a registry of its own: what it registers is gone afterwards."""
    registry: Registry[Recipe] = Registry("recipe")
    for name, recipe in RECIPES.items():
        registry.register(name, description=recipe.description)(recipe)
    monkeypatch.setattr(catalogue, "RECIPES", registry)
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
    with pytest.raises(UserError, match=message):
        load_file(path)


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
