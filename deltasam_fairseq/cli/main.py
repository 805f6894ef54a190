"""``deltasam VERB …``: one file per verb, imported only when it is used."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from deltasam_fairseq import __version__
from deltasam_fairseq.cli.parser import Parser, passed_on, unrecognized
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.registry import UnknownName

#: In the order of a first reading. ``user-dir`` is in ``user_dir.py``, and so on.
VERBS = (
    "recipes",
    "prepare",
    "train",
    "evaluate",
    "embed",
    "export",
    "sweep",
    "score",
    "table",
    "analyse",
    "bench",
    "flags",
    "user-dir",
)

RECIPE_FILE = "--recipe-file"

_USAGE_ERROR = 2
_INTERRUPTED = 130
_NOBODY_READS = 141
#: What a write fails with; which file it was is not said.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: Arguments behind the program's name; those of the process when left out.

    Returns:
        Exit status: that of the verb, 2 for an error that the user can put right, 130 after
        Ctrl-C, 141 if nobody reads the output to its end, as behind ``| head``.
    """
    try:
        try:
            return _run(argv)
        finally:
            print(end="", flush=True)  # here, not at exit, where nothing can be caught
    except BrokenPipeError:
        # Python writes what is left at exit once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NOBODY_READS


def _run(argv: Sequence[str] | None) -> int:
    _hush_imports()
    if isinstance(sys.stdout, io.TextIOWrapper):  # of a locale that lacks δ or …, say
        sys.stdout.reconfigure(errors="backslashreplace")
    typed = list(sys.argv[1:] if argv is None else argv)
    arguments = list(typed)
    try:
        recipe_file = _take_recipe_file(arguments)
        parser = build_parser(arguments[0] if arguments else "")
    except UserError as error:
        return _complain(str(error))
    args, extra = parser.parse_known_args(arguments)
    if extra and not args.passes_on:
        args.parser.error(unrecognized(extra, args.known_flags))
    for line in passed_on(extra, args.known_flags):
        print(f"deltasam: note: {line}", file=sys.stderr)
    args.extra, args.recipe_file, args.typed = extra, recipe_file, typed
    try:
        status: int = args.run(args)
    except (UserError, UnknownName) as error:
        return _complain(str(error))
    except OSError as error:
        if error.filename is None and error.errno not in _DISK_FULL:
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        return _complain(f"{place}{error.strerror}")
    except KeyboardInterrupt as stop:
        print("\ndeltasam: stopped" + "".join(f"; {part}" for part in stop.args), file=sys.stderr)
        return _INTERRUPTED
    return status


def _hush_imports() -> None:
    """Keep from the user what is said whenever fairseq is imported, and nothing else."""
    # fairscale, which fairseq imports, uses functions of torch under their old names.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"fairscale\.")
    # And fairseq asks for a package that is needed by one of its tasks.
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)


def build_parser(verb: str = "") -> argparse.ArgumentParser:
    """Build the parser, with the arguments of one verb, or of all if it is none of ``VERBS``."""
    parser = Parser(
        prog="deltasam", description="Sharpness-aware training with fairseq, from text to table."
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        RECIPE_FILE,
        metavar="FILE",
        help="a Python file that registers recipes of yours; it may stand behind any verb",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name in (verb,) if verb in VERBS else VERBS:
        module = _module(name)
        one = verbs.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(one)
        one.set_defaults(run=module.run, passes_on=getattr(module, "PASSES_ON", False))
    return parser


def _module(verb: str) -> ModuleType:
    return importlib.import_module(f"deltasam_fairseq.cli.{verb.replace('-', '_')}")


def _take_recipe_file(arguments: list[str]) -> Path | None:
    """Load the recipes of a file before the parser lists them; removes it from the arguments."""
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag == RECIPE_FILE:
            if not equals and index + 1 == len(arguments):
                raise UserError(f"{RECIPE_FILE} needs a file behind it")
            path = Path(value if equals else arguments[index + 1])
            del arguments[index : index + (1 if equals else 2)]
            if any(left.partition("=")[0] == RECIPE_FILE for left in arguments):
                raise UserError(
                    f"{RECIPE_FILE} can be given once; import the other file in {path}, or put all "
                    "recipes into one"
                )
            importlib.import_module("deltasam_fairseq.recipes.catalogue").load_file(path)
            return path
    return None


def _complain(message: str) -> int:
    print(f"deltasam: {message}", file=sys.stderr)
    return _USAGE_ERROR
