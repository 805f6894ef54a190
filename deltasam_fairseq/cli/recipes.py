"""List the recipes, or show all of one, for all models that it fits or for one.

deltasam recipes
deltasam recipes glue/rte
deltasam recipes glue/rte --model roberta_large
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.base import Model, Recipe
from deltasam_fairseq.recipes.catalogue import RECIPES, find_recipe, load_packages
from deltasam_fairseq.recipes.methods import Flags, by_kind, takes_regularizer

HELP = "list what can be trained, or show all of one recipe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the optional name and model."""
    parser.add_argument("name", nargs="?", help="the recipe to show")
    parser.add_argument("--model", help="show the recipe as it is for this model")


def run(args: argparse.Namespace) -> int:
    """Print one recipe or the list; a model without a recipe is an error."""
    if args.name:
        print(describe(find_recipe(args.name), args.model))
    elif args.model:
        raise UserError(
            f"--model {args.model} goes with a recipe: deltasam recipes RECIPE --model {args.model}"
        )
    else:
        load_packages()
        rows = [
            (name, recipe.metric, RECIPES.describe(name), recipe.kind.starts_from(recipe))
            for name, recipe in RECIPES.items()
        ]
        print(_aligned([("recipe", "metric", "what it is", "models"), *rows]))
    return 0


def describe(recipe: Recipe, model: str | None = None) -> str:
    """Write a recipe out: for a model, with its flags in their places, or for all models."""
    models: Mapping[str, Model] = recipe.models
    own: list[str] = []
    if model is not None:
        recipe, models, own = recipe.with_model(model), {}, _facts(model, recipe.model(model))
    usage = f"deltasam train {recipe.name} {recipe.kind.usage(recipe)}"
    parts = [
        f"{recipe.name}, version {recipe.version}: {recipe.description}",
        *own,
        f"data:    {_named(recipe.prepare, model)}",
        f"train:   {_named(usage, model)}",
        f"metric:  {recipe.metric}",
        f"methods: {_choice(recipe)}",
        *(f"note:    {note}" for note in recipe.notes),
        *([f"no GPU:  {recipe.on_cpu}"] if recipe.on_cpu else []),
        f"flags of fairseq-train:\n{_listing(recipe.flags)}",
        *([f"at the first start:\n{_listing(recipe.start)}"] if recipe.start else []),
        *_methods(recipe.methods, ""),
        *(line for name, one in models.items() for line in _model(name, one)),
        *([f"flags of fairseq-generate:\n{_listing(recipe.generation)}"] * bool(recipe.generation)),
        *(
            f"grid:    {name} in {', '.join(f'{value:g}' for value in values)}"
            for name, values in recipe.grid.items()
        ),
    ]
    return "\n".join(parts)


def _choice(recipe: Recipe) -> str:
    """Write what ``--method`` can be, by kind; without what the criterion cannot do."""
    parts = {
        name: part
        for name, part in recipe.all_parts.items()
        if not part.regularizes or takes_regularizer(recipe.flags.get("criterion"))
    }
    kinds = (f"{kind}: {', '.join(names)}" for kind, names in by_kind(parts).items())
    return f"{'; '.join(kinds)}; sums with + have one of each at most"


def _named(command: str, model: str | None) -> str:
    return command if model is None else command.replace("--model MODEL", f"--model {model}")


def _facts(name: str, model: Model) -> list[str]:
    published = ", ".join(f"{row} {cell}" for row, cell in model.published.items())
    return [
        f"with --model {name}: {model.description}; inputs of {model.max_tokens} tokens at most",
        *([f"published for {name}: {published}"] if published else []),
    ]


def _model(name: str, model: Model) -> list[str]:
    head, *published = _facts(name, model)
    methods = _methods(model.methods, f"--model {name} ")
    return [f"{head}\n{_listing(model.flags)}", *methods, *published]


def _methods(methods: Mapping[str, Flags], prefix: str) -> list[str]:
    return [f"with {prefix}--method {name}:\n{_listing(flags)}" for name, flags in methods.items()]


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
