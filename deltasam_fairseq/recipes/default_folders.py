"""Where things are if nobody says otherwise, below the current folder."""

from __future__ import annotations

from pathlib import Path


def encoder_folder(model: str) -> Path:
    """Return the folder of a pretrained model, as in ``models/roberta_large``."""
    return Path("models", model)


def data_folder(recipe: str, model: str) -> Path:
    """Return a recipe's data in a model's vocabulary, as in ``data/glue/rte/roberta_large``."""
    return Path("data", recipe, model)


def run_folder(recipe: str, model: str, name: str) -> Path:
    """Return the folder of a run, as in ``runs/glue/rte/roberta_large/sam-seed1``."""
    return Path("runs", recipe, model, name)


def sweep_folder(recipe: str, model: str) -> Path:
    """Return the folder of a sweep, as in ``sweeps/glue/rte/roberta_large``."""
    return Path("sweeps", recipe, model)
