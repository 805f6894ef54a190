"""From a recipe to the arguments of fairseq's programs. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltasam_fairseq.data.process import fairseq_program
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.plugin_path import plugin_dir
from deltasam_fairseq.recipes.base import METHODS, Flags, FlagValue, Recipe


def train_command(
    recipe: Recipe,
    *,
    data: Path,
    save_dir: Path,
    method: str,
    seed: int,
    overrides: Sequence[str] = (),
) -> list[str]:
    """Build the call of fairseq-train.

    Args:
        recipe: What to train.
        data: Folder of binary files.
        save_dir: Folder for checkpoints.
        method: How the weights are perturbed, one of ``METHODS``.
        seed: Seed of weights, order and dropout.
        overrides: Further flags of fairseq, as typed; they replace the recipe's.

    Returns:
        Program and arguments, each flag once.

    Raises:
        UserError: If the method is unknown.

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
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    own: Flags = {"sam-method": method, "seed": seed, "save-dir": str(save_dir)}
    flags = merge_flags({**recipe.flags, **recipe.methods.get(method, {}), **own}, overrides)
    return [*fairseq_program("train"), str(data), "--user-dir", str(plugin_dir()), *flags]


def generate_command(
    recipe: Recipe, *, data: Path, checkpoint: Path, split: str, overrides: Sequence[str] = ()
) -> list[str]:
    """Build the call of fairseq-generate.

    Args:
        recipe: How to decode.
        data: Folder of binary files.
        checkpoint: Model to decode with.
        split: Subset to decode, ``test`` or ``valid``.
        overrides: Further flags of fairseq, as typed; they replace the recipe's.

    Returns:
        Program and arguments, each flag once.
    """
    # fairseq-fixed leaves the last batch out if its size is no multiple of this.
    own: Flags = {
        "path": str(checkpoint),
        "gen-subset": split,
        "required-batch-size-multiple": 1,
    }
    task = {name: recipe.flags[name] for name in ("task", "source-lang", "target-lang")}
    flags = merge_flags({**task, **recipe.generation, **own}, overrides)
    return [*fairseq_program("generate"), str(data), "--user-dir", str(plugin_dir()), *flags]


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
