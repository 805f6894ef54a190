"""From a recipe to the arguments of fairseq's programs. Pure functions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from deltasam_fairseq.data.process import fairseq_program
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.plugin_path import plugin_dir
from deltasam_fairseq.recipes.base import (
    CONTROLS,
    METHODS,
    PRECISIONS,
    Control,
    Flags,
    FlagValue,
    Recipe,
)
from deltasam_fairseq.recipes.launch import Launch, update_freq
from deltasam_fairseq.registry import nearest

#: Flags that say what a run is, and what deltasam calls them.
_OWN = {
    "sam-method": "--method of deltasam train, --methods of deltasam sweep",
    "method": "--methods of deltasam sweep",
    "seed": "--seed of deltasam train, --seeds of deltasam sweep",
    "save-dir": "--save-dir of deltasam train, --out of deltasam sweep",
    "user-dir": "always the plugin's own",
}
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
    """Build the call of fairseq-train.

    Args:
        recipe: What to train.
        data: Folder of binary files.
        save_dir: Folder for checkpoints.
        method: How the weights are perturbed, one of ``METHODS`` or ``CONTROLS``.
        seed: Seed of weights, order and dropout.
        overrides: Further flags of fairseq, as typed; they replace the recipe's.
        start: Flags of a first start, such as ``restore-file``.
        precision: One of ``PRECISIONS``; none is the recipe's own.
        launch: On how many GPUs, and who starts it; none leaves both to fairseq.

    Returns:
        Program and arguments, each flag once.

    Raises:
        UserError: If the method or the precision is unknown, or if an override would make the
            run another one than it is called.

    Example:
        >>> recipe = Recipe("r", 1, "", "", {"lr": 0.1, "fp16": True})
        >>> command = train_command(
        ...     recipe,
        ...     data=Path("d"),
        ...     save_dir=Path("s"),
        ...     method="sam",
        ...     seed=1,
        ...     overrides=["--lr", "0.2"],
        ... )
        >>> command[3], command[6:]
        ('d', ['--lr', '0.2', '--fp16', '--sam-method', 'sam', '--seed', '1', '--save-dir', 's'])
    """
    _require_no_own(overrides)
    if method not in (*METHODS, *CONTROLS):
        raise UserError(f"unknown method {method!r}{nearest(method, (*METHODS, *CONTROLS))}")
    control = CONTROLS.get(method, Control(method, {}))
    launch = launch or Launch()
    own: Flags = {"sam-method": control.method, "seed": seed, "save-dir": str(save_dir)}
    flags = {**recipe.flags, **precision_flags(precision)}
    flags |= {**recipe.methods.get(control.method, {}), **control.flags}
    flags |= {**_launch_flags(recipe, flags, launch, overrides), **(start or {}), **own}
    arguments = merge_flags(flags, overrides)
    program = [*launch.prefix(), *fairseq_program("train")]
    return [*program, str(data), "--user-dir", str(plugin_dir()), *arguments]


def _require_no_own(overrides: Sequence[str]) -> None:
    for name in _group(overrides):
        if name in _OWN:
            raise UserError(
                f"--{name} cannot be given as a flag of fairseq, since records and folders go by "
                f"it; it is {_OWN[name]}"
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
    """Build the call of fairseq-generate, through our module that mends it.

    Args:
        recipe: How to decode.
        data: Folder of binary files.
        checkpoint: Model to decode with.
        split: Subset to decode, ``test`` or ``valid``.
        flags: Further flags; they replace the recipe's.
        overrides: Further flags of fairseq, as typed; they replace all others.

    Returns:
        Program and arguments, each flag once.
    """
    # fairseq-fixed leaves the last batch out if its size is no multiple of this.
    own: Flags = {
        "path": str(checkpoint),
        "gen-subset": split,
        "required-batch-size-multiple": 1,
    }
    task = {name: recipe.flags[name] for name in _TASK if name in recipe.flags}
    arguments = merge_flags({**task, **recipe.generation, **own, **(flags or {})}, overrides)
    program = [sys.executable, "-m", "deltasam_fairseq.inference", "generate"]
    return [*program, str(data), "--user-dir", str(plugin_dir()), *arguments]


def precision_flags(precision: str | None) -> Flags:
    """Write a precision as flags of fairseq.

    Args:
        precision: One of ``PRECISIONS``, or none.

    Returns:
        Flags that replace those of a recipe.

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
    if not max_tokens.isdecimal():
        raise UserError(f"--max-tokens {max_tokens}: not a whole number")
    freq = update_freq(recipe.tokens_per_update, gpus=gpus, max_tokens=int(max_tokens))
    return {**found, "update-freq": freq}


def merge_flags(flags: Flags, overrides: Sequence[str]) -> list[str]:
    """Write flags as arguments, with those of the user in the place of the recipe's.

    Args:
        flags: Names without dashes, and values.
        overrides: As typed: ``--lr 0.1``, ``--lr=0.1``, ``--fp16``; the first must be a flag.

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
    """Read arguments back.

    Args:
        arguments: Of :func:`merge_flags`, or a whole command.

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
