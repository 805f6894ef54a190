"""Reading and writing checkpoints of fairseq, BART's above all, without fairseq."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.conversion.shapes import POSITION_OFFSET
from deltasam_fairseq.conversion.weights import BartWeights, assemble
from deltasam_fairseq.data.bart import ARCHITECTURES, SIZES
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.safe_pickles import allow_fairseqs

_HEADS = "classification_heads."
# What versions of fairseq keep in the state beside the weights: buffers, and in
# 0.12.2 copies of each encoder layer for a fast path, which loading makes anew.
_NO_WEIGHTS = re.compile(
    r"(encoder|decoder)\.version$|.*\._float_tensor$"
    r"|encoder\.layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias)$"
)
#: Settings under which a transformer of fairseq is a BART, and their values.
_BART: Mapping[str, object] = {
    "no_scale_embedding": True,
    "layernorm_embedding": True,
    "encoder_normalize_before": False,
    "decoder_normalize_before": False,
    "encoder_learned_pos": True,
    "decoder_learned_pos": True,
    "share_all_embeddings": True,
    "share_decoder_input_output_embed": True,
}
_FOREIGN = re.compile(r"GLOBAL (\S+) was not an allowed global")


def read_checkpoint(path: Path) -> BartWeights:
    """Return the weights of a BART that fairseq wrote, of any version.

    Classification heads and the state of the optimizer are left out.

    Raises:
        UserError: If the file cannot be read, or is not a BART model.
    """
    content, settings = load_model(path, "BART")
    for name, value in _BART.items():
        if settings.get(name, value) != value:
            raise UserError(f"{path}: {name} is {settings[name]!r}; a BART model has {value!r}")
    state = {
        name: value
        for name, value in content["model"].items()
        if not name.startswith(_HEADS) and not _NO_WEIGHTS.match(name)
    }
    sizes = {}
    for flag in SIZES:
        default = ARCHITECTURES["bart_large"][flag]
        sizes[flag] = settings.get(flag.replace("-", "_"), default)
    # Checkpoints of before fairseq 0.9 name one number of positions for both sides.
    for side, flag in (("encoder", "max-source-positions"), ("decoder", "max-target-positions")):
        table = state.get(f"{side}.embed_positions.weight")
        if table is not None:
            sizes[flag] = table.size(0) - POSITION_OFFSET
    return assemble(sizes, state, str(path))


def write_checkpoint(weights: BartWeights, path: Path) -> None:
    """Write a checkpoint that ``fairseq-train --restore-file`` and fairseq's hub take."""
    settings = {flag.replace("-", "_"): value for flag, value in weights.sizes.items()}
    settings["decoder_embed_dim"] = settings["encoder_embed_dim"]
    args = argparse.Namespace(
        arch="bart_large",
        task="translation",
        source_lang="source",
        target_lang="target",
        criterion="label_smoothed_cross_entropy",
        **_BART,
        **settings,
    )
    save(args, weights.state, path, criterion="LabelSmoothedCrossEntropyCriterion")


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
    content = load(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{path} is not a checkpoint of fairseq: it has no 'model'")
    settings = content.get("args")
    if settings is None:
        settings = (content.get("cfg") or {}).get("model")
    if isinstance(settings, argparse.Namespace):
        settings = vars(settings)
    if not isinstance(settings, dict):
        raise UserError(f"{path} does not say how its model was built: no 'args' and no 'cfg'")
    name = str(settings.get("arch") or settings.get("_name"))
    if not name.startswith(family.lower()):
        raise UserError(f"{path} holds a model of the architecture {name}, not {family}{advice}")
    return content, settings


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
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        if found := _FOREIGN.search(str(error)):
            raise UserError(
                f"{path} holds an object of the class {found.group(1)}, which no "
                "model's weights need; it is not loaded, as it could run code"
            ) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "weights_only" in reason:  # torch's advice, whatever is the matter
            reason = "torch.save does not write such a file"
        raise UserError(
            f"{path} cannot be read as a checkpoint ({reason}); it may be a part of a file: "
            "download it again, or unpack the archive first"
        ) from None
