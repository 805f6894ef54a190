"""What the studies have in common: their command line, and their records as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from deltasam_fairseq.benchmarks.record import surroundings
from deltasam_fairseq.errors import UserError

Record = Mapping[str, Any]
Number = TypeVar("Number", int, float)


def study_parser(study: str, text: str | None) -> argparse.ArgumentParser:
    """Make the parser of a study, whose help is its module's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m scripts.studies.{study}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(
    study: str,
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], Mapping[str, Any]],
    tables: Callable[[Sequence[Record]], str],
    arguments: Sequence[str] | None = None,
    *,
    draw: Callable[[Sequence[Record], Path], None] | None = None,
) -> None:
    """Measure and print a table or a record, or print the tables of kept records.

    Bad arguments and every :class:`UserError` end in one line and status 2.

    Args:
        study: The name of the study's module.
        parser: Knows the study's own arguments.
        measure: Returns what the study found, in JSON's types.
        tables: Lays records out as Markdown.
        arguments: The command line, without the program's name.
        draw: Draws kept records, for ``--show RECORD … --plot FILE``.
    """
    if draw:
        parser.add_argument(
            "--plot", type=Path, metavar="FILE", help="draw what --show names: .png, .pdf or .svg"
        )
    parser.add_argument("--json", action="store_true", help="print the record, not its table")
    parser.add_argument(
        "--show", type=Path, nargs="+", metavar="RECORD", help="print the table of kept records"
    )
    args = parser.parse_args(arguments)
    try:
        if args.show:
            records = [read(path, study) for path in args.show]
            if draw and args.plot:
                draw(records, args.plot)
            print(tables(records))
            return
        if draw and args.plot:
            parser.error("--plot draws kept records: name them with --show")
        settings = {name: v for name, v in vars(args).items() if name not in {"json", "show"}}
        # A record names the files without the folders of the machine that it was made on.
        settings |= {n: v.absolute().name for n, v in settings.items() if isinstance(v, Path)}
        around = surroundings()
        record = {"study": study, "settings": settings, **around, **measure(args)}
    except UserError as error:
        parser.error(str(error))
    print(json.dumps(record, indent=2, ensure_ascii=False) if args.json else tables([record]))


def read(path: Path, study: str) -> Record:
    """Read a record that ``--json`` printed.

    Args:
        path: The file.
        study: The study that it should be of.

    Returns:
        The record.

    Raises:
        UserError: If the file is something else.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds no record: {error}") from None
    if not isinstance(record, dict) or record.get("study") != study:
        raise UserError(f"{path} is no record of the study {study}")
    return record


def number(kind: type[Number], least: float, *, above: bool = False) -> Callable[[str], Number]:
    """Make an argument's type that takes numbers from some value on.

    Args:
        kind: ``int`` or ``float``.
        least: The smallest number allowed.
        above: Whether ``least`` itself is refused.

    Returns:
        The type, for :mod:`argparse`.

    Example:
        >>> number(int, 1)("3")
        3
    """

    def parse(text: str) -> Number:
        bound = f"{'above' if above else 'at least'} {least:g}"
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {bound}") from None
        if not (least < value if above else least <= value) or value == float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number {bound}")
        return value

    return parse


def numbers(one: Callable[[str], Number]) -> Callable[[str], list[Number]]:
    """Make an argument's type that takes several numbers, with commas between them.

    Args:
        one: The type of each.

    Returns:
        The type, for :mod:`argparse`.

    Example:
        >>> numbers(number(float, 0))("0.1,2")
        [0.1, 2.0]
    """
    return lambda text: [one(part) for part in text.split(",")]


def add_counts(
    parser: argparse.ArgumentParser, counts: Sequence[tuple[str, int, int, str]]
) -> None:
    """Add options whose values are whole numbers.

    Args:
        parser: Where to.
        counts: Name, least value, default and meaning of each.
    """
    for name, least, default, meaning in counts:
        parser.add_argument(
            f"--{name}",
            type=number(int, least),
            default=default,
            metavar="N",
            help=f"{meaning} (%(default)s)",
        )


def say(line: str) -> None:
    """Print progress where it does not mix with the record."""
    print(line, file=sys.stderr, flush=True)
