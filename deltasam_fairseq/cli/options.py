"""Options that several verbs share."""

from __future__ import annotations

import argparse
from math import inf, nan
from pathlib import Path

from deltasam_fairseq.errors import UserError


def whole_number(text: str) -> int:
    """Read a whole number greater than zero; the type of an argparse option.

    Args:
        text: As typed.

    Returns:
        The number.

    Raises:
        argparse.ArgumentTypeError: If it is something else.
    """
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number greater than zero")
    return int(text)


def positive_number(text: str) -> float:
    """Read a number greater than zero; the type of an argparse option.

    Args:
        text: As typed.

    Returns:
        The number.

    Raises:
        argparse.ArgumentTypeError: If it is something else.
    """
    try:
        number = float(text)
    except ValueError:
        number = nan
    if not 0 < number < inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number greater than zero")
    return number


def add_number(parser: argparse.ArgumentParser, flag: str, default: int, text: str) -> None:
    """Add an option whose value is a whole number.

    Args:
        parser: Where to.
        flag: With its dashes.
        default: Named in the help as well.
        text: The help.
    """
    parser.add_argument(
        flag, type=whole_number, default=default, metavar="N", help=f"{text} (%(default)s)"
    )


def add_text_files(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add options for source and target files of each split, and for holding out.

    Args:
        parser: Where to.
        required: Whether the training files have to be given.
    """
    for split in ("train", "valid", "test"):
        for side in ("source", "target"):
            parser.add_argument(
                f"--{split}-{side}",
                type=Path,
                metavar="FILE",
                required=required and split == "train",
                help=f"{split} {side}s, UTF-8, one text per line",
            )
    parser.add_argument(
        "--hold-out",
        type=whole_number,
        metavar="N",
        help="pairs to hold out of the training data for each split that is not given; "
        "default: one in twenty, 1000 at most. They are chosen by hash, whatever the order",
    )


def both_files(args: argparse.Namespace, split: str) -> tuple[Path, Path] | None:
    """Return a split's files of :func:`add_text_files`.

    Args:
        args: Parsed.
        split: Its name.

    Returns:
        Source and target, or none if neither is given.

    Raises:
        UserError: If one is given without the other.
    """
    source, target = getattr(args, f"{split}_source"), getattr(args, f"{split}_target")
    if (source is None) != (target is None):
        raise UserError(f"--{split}-source and --{split}-target belong together: give both or none")
    return None if source is None else (source, target)


def add_gpt2_files(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add options for the files of GPT-2's BPE.

    Args:
        parser: Where to.
        names: Which of ``encoder.json``, ``vocab.bpe`` and ``dict.txt``.
    """
    parser.add_argument("--gpt2", type=Path, metavar="DIR", help=f"holds {', '.join(names)}")
    for name in names:
        parser.add_argument(
            _flag(name), type=Path, metavar="FILE", help=f"if it is not DIR/{name} of --gpt2"
        )


def gpt2_file(args: argparse.Namespace, name: str) -> Path:
    """Return one of the files of :func:`add_gpt2_files`.

    Args:
        args: Parsed.
        name: Its usual name.

    Returns:
        Where it is.

    Raises:
        UserError: If neither it nor the folder is given.
    """
    given: Path | None = getattr(args, _flag(name)[2:].replace("-", "_"))
    if given is None and args.gpt2 is None:
        raise UserError(f"give {name}, with {_flag(name)} FILE or in the folder of --gpt2 DIR")
    return given or args.gpt2 / name


def _flag(name: str) -> str:
    return "--dict" if name == "dict.txt" else f"--{name.replace('.', '-')}"
