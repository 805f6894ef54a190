"""From a recipe to the arguments of fairseq's programs. Pure functions."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from deltasam_fairseq.choices import PRECISIONS
from deltasam_fairseq.data.process import fairseq_program
from deltasam_fairseq.errors import UserError, at_least, read_whole
from deltasam_fairseq.plugin_path import plugin_dir
from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.launch import Launch, update_freq
from deltasam_fairseq.recipes.methods import Flags, FlagValue, regularized_criterion
from deltasam_fairseq.registry import nearest

#: Flags that say what a run is, and what deltasam calls them.
_OWN = {
    "sam-method": "--method of deltasam train, --methods of deltasam sweep",
    "method": "--methods of deltasam sweep",
    "seed": "--seed of deltasam train, --seeds of deltasam sweep",
    "save-dir": "--save-dir of deltasam train, --out of deltasam sweep",
    "user-dir": "always the plugin's own",
}
#: What fairseq trains with where no criterion is named.
_FAIRSEQS_CRITERION = "cross_entropy"
#: Our programs that run a checkpoint over a split, as a module.
INFERENCE = "deltasam_fairseq.inference"
#: Flags that training and decoding must agree on: what the model sees follows from them.
_TASK = (
    "task",
    "source-lang",
    "target-lang",
    "truncate-source",
    "max-source-positions",
    "max-target-positions",
)


def train_command(
    recipe: Recipe,
    *,
    data: Path,
    save_dir: Path,
    method: str,
    seed: int,
    overrides: Sequence[str] = (),
    start: Flags | None = None,
    precision: str | None = None,
    launch: Launch | None = None,
) -> list[str]:
    """Build the call of fairseq-train, with each flag once.

    Args:
        recipe: What to train.
        data: Folder of binary files.
        save_dir: Folder for checkpoints.
        method: A value of ``--method``.
        seed: Seed of weights, order and dropout.
        overrides: Further flags of fairseq, as typed; they replace the recipe's.
        start: Flags of a first start, such as ``restore-file``.
        precision: None is the recipe's own.
        launch: None leaves the number of GPUs to fairseq.

    Returns:
        Program and arguments.

    Example:
        >>> recipe = Recipe("r", 1, "", "", {"lr": 0.1, "fp16": True})
        >>> paths = {"data": Path("d"), "save_dir": Path("s")}
        >>> command = train_command(
        ...     recipe, **paths, method="sam", seed=1, overrides=["--lr", "0.2"]
        ... )
        >>> command[3], command[6:]
        ('d', ['--lr', '0.2', '--fp16', '--sam-method', 'sam', '--seed', '1', '--save-dir', 's'])
    """
    chosen = recipe.method(method)
    typed = _group(overrides)
    _require_no_own(typed, ("regularizer",) if chosen.regularizer else ())
    launch = launch or Launch()
    own: Flags = {"sam-method": chosen.sam_method, "seed": seed, "save-dir": str(save_dir)}
    flags = {**recipe.flags, **precision_flags(precision), **chosen.flags(recipe.methods, typed)}
    if chosen.regularizer:
        criterion = str(flags.get("criterion", _FAIRSEQS_CRITERION))
        other = " ".join(typed.get("criterion") or ()) or None
        flags["criterion"] = regularized_criterion(criterion, other, chosen)
    flags |= {**_launch_flags(recipe, flags, launch, overrides), **(start or {}), **own}
    arguments = merge_flags(flags, overrides)
    program = [*launch.prefix(), *fairseq_program("train")]
    return [*program, str(data), "--user-dir", str(plugin_dir()), *arguments]


def _require_no_own(typed: Iterable[str], besides: Sequence[str]) -> None:
    own = {**_OWN, **dict.fromkeys(besides, _OWN["sam-method"])}
    for name in typed:
        if name in own:
            raise UserError(
                f"--{name} cannot be given as a flag of fairseq, since records and folders go by "
                f"it; it is {own[name]}"
            )


def generate_command(
    recipe: Recipe,
    *,
    data: Path,
    checkpoint: Path,
    split: str,
    flags: Flags | None = None,
    overrides: Sequence[str] = (),
) -> list[str]:
    """Build the call of fairseq-generate as corrected here; ``flags`` replace the recipe's."""
    # fairseq-fixed leaves the last batch out if its size is no multiple of this.
    own: Flags = {
        "path": str(checkpoint),
        "gen-subset": split,
        "required-batch-size-multiple": 1,
    }
    task = {name: recipe.flags[name] for name in _TASK if name in recipe.flags}
    arguments = merge_flags({**task, **recipe.generation, **own, **(flags or {})}, overrides)
    program = [sys.executable, "-m", INFERENCE, "generate"]
    return [*program, str(data), "--user-dir", str(plugin_dir()), *arguments]


def predict_command(data: Path, checkpoint: Path, split: str, out: Path, *, cpu: bool) -> list[str]:
    """Build the call that writes the logits of a split."""
    return [
        *(sys.executable, "-m", INFERENCE, "predict", str(data), "--path", str(checkpoint)),
        *("--split", split, "--out", str(out), "--user-dir", str(plugin_dir())),
        *(("--cpu",) if cpu else ()),
    ]


def embed_command(data: Path, checkpoint: Path, lines: Path, out: Path, *, cpu: bool) -> list[str]:
    """Build the call that embeds a file of sentences."""
    return [
        *(sys.executable, "-m", INFERENCE, "embed", str(data), "--path", str(checkpoint)),
        *("--lines", str(lines), "--out", str(out), "--user-dir", str(plugin_dir())),
        *(("--cpu",) if cpu else ()),
    ]


def precision_flags(precision: str | None) -> Flags:
    """Write a precision as flags of fairseq, which replace those of a recipe.

    Returns:
        The flags; nothing for no precision.

    Raises:
        UserError: If it is unknown.

    Example:
        >>> precision_flags("bf16")
        {'fp16': False, 'bf16': True}
    """
    if precision is None:
        return {}
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}{nearest(precision, PRECISIONS)}")
    return {name: name == precision for name in PRECISIONS if name != "fp32"}


def _launch_flags(recipe: Recipe, flags: Flags, launch: Launch, overrides: Sequence[str]) -> Flags:
    if recipe.tokens_per_update is None:
        if launch.gpus is None:
            return {}
        return {"cpu": False, "distributed-world-size": launch.gpus}
    gpus = launch.gpus or 1
    typed = _group(overrides)
    found: Flags = {"distributed-world-size": gpus}
    if "update-freq" in typed:
        return found
    max_tokens = (typed.get("max-tokens") or [str(flags["max-tokens"])])[0]
    tokens = read_whole("--max-tokens", max_tokens)
    at_least("--max-tokens", tokens, 1)
    freq = update_freq(recipe.tokens_per_update, gpus=gpus, max_tokens=tokens)
    return {**found, "update-freq": freq}


def merge_flags(flags: Flags, overrides: Sequence[str]) -> list[str]:
    """Write flags as arguments, with those of the user in the place of the recipe's.

    Returns:
        Arguments in the order of ``flags``, then the user's other flags.

    Example:
        >>> merge_flags({"lr": 0.1, "fp16": True, "tpu": False}, ["--seed=2", "--lr", "0.3"])
        ['--lr', '0.3', '--fp16', '--seed', '2']
    """
    typed = _group(overrides)
    merged = {name: typed.pop(name, _values(value)) for name, value in flags.items()}
    merged.update(typed)
    return [
        part
        for name, values in merged.items()
        if values is not None
        for part in (f"--{name}", *values)
    ]


def flag_values(arguments: Sequence[str]) -> dict[str, str]:
    """Read arguments, or a whole command, back.

    Returns:
        Values by name, without dashes; empty for a flag without one.

    Example:
        >>> flag_values(["prog", "data", "--lr", "0.1", "--fp16"])
        {'lr': '0.1', 'fp16': ''}
    """
    first = next((i for i, part in enumerate(arguments) if part.startswith("--")), len(arguments))
    return {name: " ".join(values or ()) for name, values in _group(arguments[first:]).items()}


def _values(value: FlagValue) -> list[str] | None:
    if isinstance(value, bool):
        return [] if value else None
    return [str(value)]


def _group(arguments: Sequence[str]) -> dict[str, list[str] | None]:
    groups: dict[str, list[str] | None] = {}
    values: list[str] = []
    for argument in arguments:
        if argument.startswith("--") and len(argument) > 2:
            name, equals, value = argument[2:].partition("=")
            groups[name] = values = [value] if equals else []
        elif not groups:
            raise UserError(
                f"unexpected argument {argument!r}: further arguments are flags of fairseq and "
                "start with --"
            )
        else:
            values.append(argument)
    return groups
