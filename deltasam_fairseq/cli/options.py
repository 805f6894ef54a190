"""Options that several verbs share, and options from the fields of dataclasses."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from math import inf, nan
from pathlib import Path
from typing import Any, get_args, get_type_hints

from deltasam_fairseq.data.text_pairs import TextFiles
from deltasam_fairseq.errors import UserError


def whole_number(text: str) -> int:
    """Read a whole number greater than zero; the type of an argparse option."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number greater than zero")
    return int(text)


def positive_number(text: str) -> float:
    """Read a number greater than zero; the type of an argparse option."""
    try:
        number = float(text)
    except ValueError:
        number = nan
    if not 0 < number < inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number greater than zero")
    return number


#: How the value of a field is read, by its type.
_READ: Mapping[type, Mapping[str, Any]] = {
    bool: {"action": "store_true"},
    int: {"type": whole_number, "metavar": "N"},
    Path: {"type": Path, "metavar": "DIR"},
    str: {},
}


def add_number(parser: argparse.ArgumentParser, flag: str, default: int, text: str) -> None:
    """Add an option whose value is a whole number, with its default behind its help."""
    parser.add_argument(
        flag, type=whole_number, default=default, metavar="N", help=f"{text} (%(default)s)"
    )


def add_settings(
    parser: argparse.ArgumentParser, settings: type, **more: Mapping[str, Any]
) -> None:
    """Add an option for each field of a dataclass that :func:`~.settings.setting` describes.

    Args:
        parser: Where to.
        settings: The dataclass; how a value is read follows from the type of its field.
        more: Further arguments of ``add_argument``, by the name of the field.
    """
    types = get_type_hints(settings)
    for one in described(settings):
        kind = next((part for part in get_args(types[one.name]) if part in _READ), types[one.name])
        default = {"required": True} if one.default is MISSING else {"default": one.default}
        parser.add_argument(
            *(one.metadata["flags"] or (f"--{one.name.replace('_', '-')}",)),
            dest=one.name,
            help=one.metadata["help"],
            **{**default, **_READ[kind], **one.metadata["how"], **more.get(one.name, {})},
        )


def values_of(settings: type, args: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the options of :func:`add_settings`, by the name of the field."""
    return {one.name: getattr(args, one.name) for one in described(settings)}


def described(settings: type) -> list[Field[Any]]:
    """Return the fields of a dataclass that a user sets."""
    return [one for one in fields(settings) if "help" in one.metadata]


def add_out(parser: argparse.ArgumentParser, text: str = "the data folder to make") -> None:
    """Add the folder to make."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=text)


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add how many processes work, and whether to replace what is there."""
    text = "processes; the result does not depend on it"
    add_number(parser, "--workers", os.cpu_count() or 1, text)
    parser.add_argument(
        "--force",
        action="store_true",
        help="make it anew in any case, in the place of what is there",
    )


def add_text_files(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add options for source and target files of each split, and for holding out."""
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


def text_files(args: argparse.Namespace) -> TextFiles | None:
    """Return the files of :func:`add_text_files`, or none if there are none to train on."""
    train = _both_files(args, "train")
    valid, test = _both_files(args, "valid"), _both_files(args, "test")
    return None if train is None else TextFiles(train, valid, test)


def _both_files(args: argparse.Namespace, split: str) -> tuple[Path, Path] | None:
    source, target = getattr(args, f"{split}_source"), getattr(args, f"{split}_target")
    if (source is None) != (target is None):
        raise UserError(f"--{split}-source and --{split}-target belong together: give both or none")
    return None if source is None else (source, target)


def add_gpt2_files(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add options for files of GPT-2's BPE: ``encoder.json``, ``vocab.bpe``, ``dict.txt``."""
    parser.add_argument("--gpt2", type=Path, metavar="DIR", help=f"holds {', '.join(names)}")
    for name in names:
        parser.add_argument(
            _flag(name), type=Path, metavar="FILE", help=f"if it is not DIR/{name} of --gpt2"
        )


def gpt2_file(args: argparse.Namespace, name: str) -> Path:
    """Return where one of the files of :func:`add_gpt2_files` is."""
    given: Path | None = getattr(args, _flag(name)[2:].replace("-", "_"))
    if given is None and args.gpt2 is None:
        raise UserError(f"give {name}, with {_flag(name)} FILE or in the folder of --gpt2 DIR")
    return given or args.gpt2 / name


def _flag(name: str) -> str:
    return "--dict" if name == "dict.txt" else f"--{name.replace('.', '-')}"


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """Add what runs a trained model over a split: its data, its batches, and where."""
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="where the data folder is now, if it was moved"
    )
    parser.add_argument(
        "--batch-size",
        type=whole_number,
        default=32,
        metavar="N",
        help="sentences that the batched engine takes at once (%(default)s)",
    )
    parser.add_argument("--cpu", action="store_true", default=None, help="leave a GPU alone")
