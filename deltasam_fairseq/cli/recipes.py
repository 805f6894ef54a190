"""List the recipes, or show all of one."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping

from deltasam_fairseq.recipes.base import Flags, Model, Recipe
from deltasam_fairseq.recipes.catalogue import RECIPES, find_recipe, load_packages

HELP = "list what can be trained, or show all of one recipe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the optional name."""
    parser.add_argument("name", nargs="?", help="the recipe to show")


def run(args: argparse.Namespace) -> int:
    """Print one recipe or the list.

    Args:
        args: ``name``.

    Returns:
        Zero.
    """
    if args.name:
        print(describe(find_recipe(args.name)))
    else:
        load_packages()
        rows = [
            (name, recipe.metric, RECIPES.describe(name), _models(recipe))
            for name, recipe in RECIPES.items()
        ]
        print(_aligned([("recipe", "metric", "what it is", "models"), *rows]))
    return 0


def describe(recipe: Recipe) -> str:
    """Write a recipe out.

    Args:
        recipe: The recipe.

    Returns:
        Several lines.
    """
    parts = [
        f"{recipe.name}, version {recipe.version}: {recipe.description}",
        f"data:    {recipe.prepare}",
        f"train:   {_train(recipe)}",
        f"metric:  {recipe.metric}",
        *(f"note:    {note}" for note in recipe.notes),
        f"flags of fairseq-train:\n{_listing(recipe.flags)}",
        *([f"at the first start:\n{_listing(recipe.start)}"] if recipe.start else []),
        *_methods(recipe.methods, ""),
        *(line for name, model in recipe.models.items() for line in _model(name, model)),
        *([f"flags of fairseq-generate:\n{_listing(recipe.generation)}"] * bool(recipe.generation)),
        *(
            f"grid:    {name} in {', '.join(f'{value:g}' for value in values)}"
            for name, values in recipe.grid.items()
        ),
    ]
    return "\n".join(parts)


def _train(recipe: Recipe) -> str:
    if recipe.models:
        return f"deltasam train {recipe.name} --model MODEL --method METHOD --seed N"
    bart = " --bart DIR" if recipe.starts_from_bart else ""
    return f"deltasam train {recipe.name} --data DIR --save-dir RUN{bart}"


def _model(name: str, model: Model) -> list[str]:
    published = ", ".join(f"{row} {cell}" for row, cell in model.published.items())
    return [
        f"with --model {name}: {model.description}; inputs of {model.max_tokens} tokens at most\n"
        f"{_listing(model.flags)}",
        *_methods(model.methods, f"--model {name} "),
        *([f"published for {name}: {published}"] if published else []),
    ]


def _methods(methods: Mapping[str, Flags], prefix: str) -> list[str]:
    return [f"with {prefix}--method {name}:\n{_listing(flags)}" for name, flags in methods.items()]


def _models(recipe: Recipe) -> str:
    if recipe.starts_from_bart:
        return "BART"
    return " ".join(recipe.models) or "from scratch"


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _listing(flags: Flags) -> str:
    return "\n".join(
        f"  --{name}" if value is True else f"  --{name} {shlex.quote(str(value))}"
        for name, value in flags.items()
        if value is not False
    )
