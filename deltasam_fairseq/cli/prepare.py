"""Turn text into a data folder: check, train sentencepiece, binarize for fairseq.

deltasam prepare docstrings --out DIR
    a summarization corpus out of the Python packages installed beside this one
deltasam prepare text --train-source FILE --train-target FILE --out DIR
    any two files whose lines belong together
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from deltasam_fairseq.cli.options import whole_number
from deltasam_fairseq.data.docstring_origin import changed_packages, docstring_origin
from deltasam_fairseq.data.docstrings import CorpusSettings
from deltasam_fairseq.data.pipeline import TokenSettings, prepare
from deltasam_fairseq.data.text_origin import TextFiles, text_origin
from deltasam_fairseq.errors import UserError

HELP = "make a data folder from docstrings or from two aligned text files"

_DOCSTRING_TOKENS = TokenSettings(vocab_size=3000, max_source_tokens=48, max_target_tokens=32)
_TEXT_TOKENS = TokenSettings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two kinds of data and their arguments."""
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    docstrings = kinds.add_parser("docstrings", help="the installed packages' docstrings")
    _add_docstring_arguments(docstrings)
    _add_common_arguments(docstrings, _DOCSTRING_TOKENS)
    docstrings.set_defaults(prepare=_prepare_docstrings)
    text = kinds.add_parser("text", help="two aligned text files")
    _add_text_arguments(text)
    _add_common_arguments(text, _TEXT_TOKENS)
    text.set_defaults(prepare=_prepare_text)


def run(args: argparse.Namespace) -> int:
    """Prepare one kind of data.

    Args:
        args: Of :func:`add_arguments`.

    Returns:
        Zero.
    """
    tokens = TokenSettings(args.vocab_size, args.max_source_tokens, args.max_target_tokens)
    args.prepare(args, tokens)
    return 0


def _prepare_docstrings(args: argparse.Namespace, tokens: TokenSettings) -> None:
    settings = CorpusSettings(
        min_train=args.min_train,
        valid=args.valid_pairs,
        test=args.test_pairs,
        max_source_words=args.max_source_words,
    )
    origin = docstring_origin(settings, workers=args.workers)
    prepare(args.out, origin, tokens, workers=args.workers, force=args.force)
    if changed := changed_packages(args.out):
        print(
            f"note: {len(changed)} of its packages have another version now ({changed[0]}); "
            "--force builds it anew"
        )


def _prepare_text(args: argparse.Namespace, tokens: TokenSettings) -> None:
    files = TextFiles(
        train=(args.train_source, args.train_target),
        valid=_both(args, "valid"),
        test=_both(args, "test"),
    )
    origin = text_origin(files, held_out=args.hold_out)
    prepare(args.out, origin, tokens, workers=args.workers, force=args.force)


def _both(args: argparse.Namespace, split: str) -> tuple[Path, Path] | None:
    source, target = getattr(args, f"{split}_source"), getattr(args, f"{split}_target")
    if (source is None) != (target is None):
        raise UserError(f"--{split}-source and --{split}-target belong together: give both or none")
    return None if source is None else (source, target)


def _add_docstring_arguments(parser: argparse.ArgumentParser) -> None:
    default = CorpusSettings()
    for flag, value, text in (
        ("--min-train", default.min_train, "fewest training pairs to accept"),
        ("--valid-pairs", default.valid, "wanted number of validation pairs"),
        ("--test-pairs", default.test, "wanted number of test pairs"),
        ("--max-source-words", default.max_source_words, "sources are cut here, in words"),
    ):
        _add_number(parser, flag, value, text)


def _add_text_arguments(parser: argparse.ArgumentParser) -> None:
    for split in ("train", "valid", "test"):
        for side in ("source", "target"):
            parser.add_argument(
                f"--{split}-{side}",
                type=Path,
                metavar="FILE",
                required=split == "train",
                help=f"{split} {side}s, UTF-8, one text per line",
            )
    parser.add_argument(
        "--hold-out",
        type=whole_number,
        metavar="N",
        help="pairs to hold out of the training data for each split that is not given; "
        "default: one in twenty, 1000 at most. They are chosen by hash, whatever the order",
    )


def _add_common_arguments(parser: argparse.ArgumentParser, tokens: TokenSettings) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the data folder to make"
    )
    for flag, value, text in (
        ("--vocab-size", tokens.vocab_size, "pieces of the joint sentencepiece model"),
        ("--max-source-tokens", tokens.max_source_tokens, "sources are cut here, in pieces"),
        ("--max-target-tokens", tokens.max_target_tokens, "targets are cut here, in pieces"),
        ("--workers", os.cpu_count() or 1, "processes; the result does not depend on it"),
    ):
        _add_number(parser, flag, value, text)
    parser.add_argument(
        "--force",
        action="store_true",
        help="make it anew in any case, in the place of what is there",
    )


def _add_number(parser: argparse.ArgumentParser, flag: str, default: int, text: str) -> None:
    parser.add_argument(
        flag, type=whole_number, default=default, metavar="N", help=f"{text} (%(default)s)"
    )
