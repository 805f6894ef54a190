"""The registry of recipes: ours, those of installed packages, and those of a file."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes import cnndm, glue, mirror, text_pairs
from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.registry import Registry

#: Packages name modules with recipes under it, in their metadata.
ENTRY_POINTS = "deltasam_fairseq.recipes"

RECIPES: Registry[Recipe] = Registry("recipe")


def register_recipe(make: Callable[[], Recipe]) -> Callable[[], Recipe]:
    """Register the recipe that a function, which is called at once, returns; a decorator.

    Returns:
        The function.

    Raises:
        TypeError: If it returns something else than a recipe.
    """
    recipe = make()
    if not isinstance(recipe, Recipe):
        raise TypeError(f"{make.__name__} returned {recipe!r}, not a Recipe")
    RECIPES.register(recipe.name, description=recipe.description)(recipe)
    return make


def load_file(path: Path) -> list[str]:
    """Run a Python file that registers recipes, once, and return the names that it registers."""
    path = path.resolve()
    name = f"deltasam_recipe_file_{hashlib.sha256(str(path).encode()).hexdigest()}"
    if name in sys.modules:
        return list(sys.modules[name].__dict__["__registered__"])
    try:
        found = _registered_by(path, name)
        if not found:
            raise UserError(
                f"--recipe-file {path} registers no recipe; put @register_recipe above a function "
                "without arguments that returns a Recipe"
            )
    except BaseException:
        sys.modules.pop(name, None)
        raise
    sys.modules[name].__dict__["__registered__"] = found
    return found


def _registered_by(path: Path, name: str) -> list[str]:
    """Run a file as the module of that name, and return what it registered."""
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"--recipe-file {path}: no such Python file")
    before = set(RECIPES.names())
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # while it runs: dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"--recipe-file {path}: {_reason(error)}") from error
    return sorted(set(RECIPES.names()) - before)


def find_recipe(name: str, file: Path | None = None) -> Recipe:
    """Look a recipe up, after the file that registers it, if any, and those of packages."""
    if file is not None:
        load_file(file)
    if name not in RECIPES:
        load_packages()
    return RECIPES.get(name)


def recipe_of(record: Mapping[str, Any], file: Path | None = None) -> Recipe:
    """Look up the recipe of a run by its record; a file takes the place of the one in there."""
    place = file or record.get("recipe_file")
    return find_recipe(record["recipe"], Path(place) if place else None)


def load_packages() -> None:
    """Import the modules that installed packages name under :data:`ENTRY_POINTS`.

    Raises:
        UserError: If one of them fails; the message names the package.
    """
    for point in metadata.entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:
            package = point.dist.name if point.dist else point.value
            raise UserError(
                f"the recipes of the package {package} ({point.value}) cannot be loaded: "
                f"{_reason(error)}"
            ) from error


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


for _recipe in (
    *(text_pairs.TEXT_PAIRS, cnndm.CNNDM, cnndm.CNNDM_SMALL, mirror.MIRROR),
    *glue.RECIPES.values(),
):
    RECIPES.register(_recipe.name, description=_recipe.description)(_recipe)
