"""List the recipes, or show one in full."""

from __future__ import annotations

import argparse
import shlex

from deltasam_fairseq.recipes.base import Flags, Recipe
from deltasam_fairseq.recipes.catalogue import RECIPES

HELP = "list what can be trained, or show one recipe in full"


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
        print(describe(RECIPES.get(args.name)))
    else:
        width = max(map(len, RECIPES.names()))
        for name, _ in RECIPES.items():
            print(f"{name:{width}}  {RECIPES.describe(name)}")
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
        f"train:   deltasam train {recipe.name} --data DIR --save-dir RUN"
        f"{' --bart DIR' if recipe.starts_from_bart else ''}",
        f"metric:  {recipe.metric}",
        f"flags of fairseq-train:\n{_listing(recipe.flags)}",
        *([f"at the first start:\n{_listing(recipe.start)}"] if recipe.start else []),
        *(f"with --method {name}:\n{_listing(flags)}" for name, flags in recipe.methods.items()),
        f"flags of fairseq-generate:\n{_listing(recipe.generation)}",
    ]
    return "\n".join(parts)


def _listing(flags: Flags) -> str:
    return "\n".join(
        f"  --{name}" if value is True else f"  --{name} {shlex.quote(str(value))}"
        for name, value in flags.items()
        if value is not False
    )
