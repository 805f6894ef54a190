"""What a run starts from, checked before fairseq is called.

fairseq itself only logs that there is no checkpoint where ``--restore-file``
points, and then trains a model with random weights for as many updates.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from deltasam_fairseq.data.prepared import PreparedCheckpoint, PreparedCorpus
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.command import flag_values
from deltasam_fairseq.recipes.environment_record import gpus
from deltasam_fairseq.recipes.methods import Flags

_FAIRSEQS_OWN = "checkpoint_last.pt"


def start_flags(recipe: Recipe, checkpoint: PreparedCheckpoint | None) -> Flags:
    """Return the flags of a run's first start: the recipe's own, and ``restore-file``."""
    wanted = recipe.kind.checkpoint
    if checkpoint is None and wanted is None:
        return {}
    if wanted is None:
        raise UserError(f"the recipe {recipe.name} trains from scratch; leave --bart out")
    if checkpoint is None or checkpoint.NAME != wanted.NAME:
        raise UserError(f"the recipe {recipe.name} {wanted.MISSING}")
    return {"restore-file": str(checkpoint.checkpoint), **recipe.start}


def check_data(recipe: Recipe, data: PreparedCorpus) -> None:
    """Check that data were prepared for the kind of data and the task of a recipe."""
    if recipe.kind.holds != data.holds:
        raise UserError(
            f"{data.path} holds {data.holds}, the recipe {recipe.name} is for "
            f"{recipe.kind.holds}; give its own data with --data"
        )


def check_start(
    command: Sequence[str], checkpoint: PreparedCheckpoint | None, data: PreparedCorpus
) -> None:
    """Check that a checkpoint exists, is not replaced by a flag, and fits model and data."""
    flags = flag_values(command)
    restored = flags.get("restore-file", _FAIRSEQS_OWN)
    if restored != _FAIRSEQS_OWN and not Path(restored).is_file():
        raise UserError(
            f"--restore-file {restored}: no such file; fairseq would train from scratch"
        )
    if checkpoint is None:
        return
    if restored != str(checkpoint.checkpoint):
        flag = f"--{checkpoint.NAME}"
        raise UserError(
            f"--restore-file {restored} would replace the checkpoint of {flag} {checkpoint.path}; "
            f"give one of them: {flag}, after deltasam prepare {checkpoint.NAME}"
        )
    checkpoint.require_fit(flags, data)


def cpu_note(recipe: Recipe, command: Sequence[str]) -> str:
    """Say what to expect of a recipe's own sizes, and of half precision, on a CPU, if anything."""
    flags = flag_values(command)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}
    if not recipe.on_cpu or not ("cpu" in flags or hidden or not gpus()):
        return ""
    arch = recipe.flags.get("arch")
    own = flags.get("arch", arch) == arch
    half = flags.keys() & {"fp16", "bf16"}
    parts = [
        *([recipe.on_cpu] if own else []),
        *(["half precision needs a GPU: --precision fp32"] if half else []),
    ]
    if not parts:
        return ""
    return f"note: {recipe.name} is sized for a GPU, and none is used: {'; '.join(parts)}"
