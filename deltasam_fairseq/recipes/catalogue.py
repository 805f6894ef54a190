"""The registry of recipes."""

from __future__ import annotations

from deltasam_fairseq.recipes import cnndm, text
from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.registry import Registry

RECIPES: Registry[Recipe] = Registry("recipe")

for _recipe in (text.DOCSTRINGS, text.TEXT, cnndm.CNNDM, cnndm.CNNDM_SMALL):
    RECIPES.register(_recipe.name, description=_recipe.description)(_recipe)
