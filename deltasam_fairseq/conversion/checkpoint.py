"""Reading and writing checkpoints of fairseq, without fairseq."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.safe_pickles import allow_fairseqs

# Buffers, and in 0.12.2 copies of each encoder layer for a fast path, which loading makes anew.
_NO_WEIGHTS = re.compile(
    r"(.+\.)?(version|_float_tensor)$"
    r"|.*encoder\.layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias)$"
)
_FOREIGN = re.compile(r"GLOBAL (\S+) was not an allowed global")


def save(
    args: argparse.Namespace, state: Mapping[str, Tensor], path: Path, *, criterion: str
) -> None:
    """Write a file that fairseq takes for a checkpoint of its own, all of it or none.

    Args:
        args: How the model is built.
        state: Its weights.
        path: The file.
        criterion: Class of the criterion that fairseq's history of optimizers names.
    """
    content = {
        "args": args,
        "model": dict(state),
        "optimizer_history": [
            {
                "criterion_name": criterion,
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": None},
                "num_updates": 0,
            }
        ],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
    }
    new = path.with_name(f"{path.name}.new")
    torch.save(content, new)
    new.replace(path)


def load_model(path: Path, family: str, advice: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint of a family of models that fairseq wrote, of any version.

    Args:
        path: The file.
        family: Its name in lower case begins that of the architecture.
        advice: The end of the message about another architecture.

    Returns:
        The content, and how the model was built.

    Raises:
        UserError: If it cannot be read, or is not a checkpoint of such a model.
    """
    content, settings = load_any_model(path)
    name = architecture(settings)
    if not name.startswith(family.lower()):
        raise UserError(f"{path} holds a model of the architecture {name}, not {family}{advice}")
    return content, settings


def load_any_model(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint of a model that fairseq wrote, of any version; see :func:`load_model`."""
    content = load(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{path} is not a checkpoint of fairseq: it has no 'model'")
    settings = section(content, "model")
    if not settings:
        raise UserError(f"{path} does not say how its model was built: no 'args' and no 'cfg'")
    return content, settings


def section(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return how a part of a training was configured; of fairseq before 0.10 all of it.

    Args:
        content: Of the checkpoint.
        name: ``model``, ``task`` or ``criterion``.

    Returns:
        The settings, or nothing if the checkpoint has none.
    """
    found = content.get("args")
    if found is None:
        found = (content.get("cfg") or {}).get(name)
    if isinstance(found, argparse.Namespace):
        found = vars(found)
    return found if isinstance(found, dict) else {}


def architecture(settings: Mapping[str, Any]) -> str:
    """Return fairseq's name of the architecture of a model."""
    return str(settings.get("arch") or settings.get("_name"))


def weights_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a checkpoint, without what else versions of fairseq keep there."""
    return {name: value for name, value in content["model"].items() if not _NO_WEIGHTS.match(name)}


def load(path: Path) -> Any:
    """Return the content of a checkpoint of fairseq; code that it may hold is not run.

    Raises:
        UserError: If it cannot be read, or holds objects that no checkpoint needs.
    """
    if not hasattr(torch.serialization, "add_safe_globals"):
        raise UserError(f"reading {path} safely needs torch 2.4 or later, not {torch.__version__}")
    allow_fairseqs()
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # any: what is no pickle is read as orders of one
        if found := _FOREIGN.search(str(error)):
            raise UserError(
                f"{path} holds an object of the class {found.group(1)}, which no "
                "model's weights need; it is not loaded, as it could run code"
            ) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        known = isinstance(error, RuntimeError | pickle.UnpicklingError | EOFError | OSError)
        if "weights_only" in reason or not known:  # torch's advice, whatever is the matter
            reason = "torch.save does not write such a file"
        raise UserError(
            f"{path} cannot be read as a checkpoint ({reason}); it may be a part of a file: "
            "download it again, or unpack the archive first"
        ) from None
