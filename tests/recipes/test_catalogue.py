import shlex
from pathlib import Path

import pytest

from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.catalogue import RECIPES
from deltasam_fairseq.recipes.command import generate_command, train_command
from deltasam_fairseq.recipes.methods import PARTS, takes_regularizer

CASES: list[tuple[str, str | None]] = [
    (name, model) for name, recipe in RECIPES.items() for model in tuple(recipe.models) or (None,)
]


def recipe_for(name: str, model: str | None) -> Recipe:
    recipe = RECIPES.get(name)
    return recipe.with_model(model) if model else recipe


@pytest.mark.parametrize(("name", "model"), CASES)
def test_every_recipe_is_complete(name: str, model: str | None) -> None:
    recipe = recipe_for(name, model)
    assert recipe.name == name
    assert recipe.version >= 1
    assert RECIPES.describe(name) == recipe.description != ""
    assert shlex.split(recipe.prepare)[:2] == ["deltasam", "prepare"]
    assert recipe.flags["log-format"] == "json"
    assert recipe.flags["optimizer"] == "delta_sam"


@pytest.mark.fairseq
@pytest.mark.parametrize(("name", "model"), CASES)
def test_fairseq_knows_every_flag(
    name: str, model: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairseq import options, utils

    monkeypatch.setattr(utils, "import_user_module", lambda args: None)
    pytest.importorskip("deltasam_fairseq.fairseq_plugin.register")
    recipe = recipe_for(name, model)
    regularizers = [f"sam+{name}" for name in ("rdrop", "r3f", "smart")]
    regularized = takes_regularizer(recipe.flags["criterion"])
    for method in ("sam", "freelb", *recipe.parts, *(regularizers if regularized else ())):
        train = train_command(recipe, data=Path("d"), save_dir=Path("s"), method=method, seed=1)
        args = options.parse_args_and_arch(options.get_training_parser(), train[3:])
        assert args.arch == recipe.flags["arch"]
        wanted = recipe.method(method).regularizer
        assert getattr(args, "regularizer", "none") == (wanted or "none")
    if not recipe.generation:
        return
    generate = generate_command(recipe, data=Path("d"), checkpoint=Path("c"), split="test")
    args = options.parse_args_and_arch(options.get_generation_parser(), generate[4:])
    assert args.beam == recipe.generation["beam"]


def test_controls_run_as_methods_with_estimators_of_the_core() -> None:
    from deltasam_fairseq.core.estimators import ESTIMATORS

    controls = [part for part in PARTS.values() if part.like]
    assert controls
    for control in controls:
        assert control.like in PARTS
        assert control.flags["sam-estimator"] in ESTIMATORS


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(KeyError, match="unknown recipe 'texts'; did you mean 'text'"):
        RECIPES.get("texts")
