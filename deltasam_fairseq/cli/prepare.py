"""Make what training starts from: a data folder, or a checkpoint for fairseq.

deltasam prepare text --train-source FILE --train-target FILE --out DIR
    any two files whose lines belong together; examples/docstrings of a checkout makes some
deltasam prepare cnndm --stories DIR --url-lists DIR --gpt2 DIR --out DIR
    CNN/DailyMail, from the official stories or from aligned files
deltasam prepare bart CHECKPOINT --gpt2 DIR --out DIR
    a BART model, from a checkpoint of fairseq or a folder of Hugging Face
deltasam prepare encoder CHECKPOINT --out models/MODEL
    a BERT or a RoBERTa, from a folder of Hugging Face or a checkpoint of fairseq
deltasam prepare glue/rte --glue DIR --model MODEL
    a task of GLUE in the vocabulary of that model; so every recipe with sentences
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection
from pathlib import Path

from deltasam_fairseq.cli import (
    prepare_bart,
    prepare_cnndm,
    prepare_encoder,
    prepare_sentences,
)
from deltasam_fairseq.cli.options import add_number, add_text_files, both_files
from deltasam_fairseq.data.pipeline import prepare
from deltasam_fairseq.data.text_origin import TextFiles, text_origin
from deltasam_fairseq.data.tokens import TokenSettings
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.catalogue import RECIPES, load_packages

HELP = "make a data folder, or a checkpoint to start from"

_KINDS = {"cnndm": prepare_cnndm, "bart": prepare_bart, "encoder": prepare_encoder}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be prepared, and the arguments of each."""
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    text = kinds.add_parser("text", help="two aligned text files")
    add_text_files(text, required=True)
    _add_text_arguments(text)
    text.set_defaults(prepare=_prepare_text)
    for name, module in _KINDS.items():
        kind = kinds.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(kind)
        kind.set_defaults(prepare=module.run)
    load_packages()
    own = tuple(kinds.choices)
    for name, recipe in RECIPES.items():
        if recipe.sentences is not None:
            _require_free(name, own)
            kind = kinds.add_parser(
                name,
                help=recipe.description.replace("%", "%%"),  # argparse would fill something in
                description=prepare_sentences.__doc__,
            )
            prepare_sentences.add_arguments(kind, recipe)


def run(args: argparse.Namespace) -> int:
    """Prepare one of them.

    Args:
        args: Of :func:`add_arguments`.

    Returns:
        Zero.
    """
    args.prepare(args)
    return 0


def _require_free(name: str, own: Collection[str]) -> None:
    if name in own:
        raise UserError(
            f"the recipe {name!r} is named as deltasam prepare {name}, which is something else; "
            f"rename the recipe, to my/{name} say"
        )


def _prepare_text(args: argparse.Namespace) -> None:
    files = TextFiles(
        train=(args.train_source, args.train_target),
        valid=both_files(args, "valid"),
        test=both_files(args, "test"),
    )
    origin = text_origin(files, held_out=args.hold_out)
    tokens = TokenSettings(args.vocab_size, args.max_source_tokens, args.max_target_tokens)
    prepare(args.out, origin, tokens, workers=args.workers, force=args.force)


def _add_text_arguments(parser: argparse.ArgumentParser) -> None:
    tokens = TokenSettings()
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the data folder to make"
    )
    for flag, value, text in (
        ("--vocab-size", tokens.vocab_size, "pieces of the joint sentencepiece model"),
        ("--max-source-tokens", tokens.max_source_tokens, "sources are cut here, in pieces"),
        ("--max-target-tokens", tokens.max_target_tokens, "targets are cut here, in pieces"),
        ("--workers", os.cpu_count() or 1, "processes; the result does not depend on it"),
    ):
        add_number(parser, flag, value, text)
    parser.add_argument(
        "--force",
        action="store_true",
        help="make it anew in any case, in the place of what is there",
    )
