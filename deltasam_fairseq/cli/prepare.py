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
deltasam prepare mirror --sentences FILE --model MODEL
    sentences to embed, one a line
deltasam prepare sts --sts DIR
    the seven STS sets that embeddings are scored on
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Collection

from deltasam_fairseq.cli import prepare_bart, prepare_cnndm, prepare_encoder, prepare_sts
from deltasam_fairseq.cli.options import (
    add_out,
    add_settings,
    add_text_files,
    add_workers,
    text_files,
    values_of,
)
from deltasam_fairseq.data.text_pairs import prepare_pairs, text_origin
from deltasam_fairseq.data.tokens import TokenSettings
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.catalogue import RECIPES, load_packages

HELP = "make a data folder, or a checkpoint to start from"

_KINDS = {
    "cnndm": prepare_cnndm,
    "bart": prepare_bart,
    "encoder": prepare_encoder,
    "sts": prepare_sts,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be prepared, and the arguments of each."""
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    text = kinds.add_parser("text", help="two aligned text files")
    add_text_files(text, required=True)
    add_out(text)
    add_settings(text, TokenSettings)
    add_workers(text)
    text.set_defaults(prepare=_prepare_text)
    for name, module in _KINDS.items():
        kind = kinds.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(kind)
        kind.set_defaults(prepare=module.run)
    load_packages()
    own = tuple(kinds.choices)
    for name, recipe in RECIPES.items():
        settings = recipe.kind.prepare_settings
        if settings:
            _require_free(name, own)
            kind = kinds.add_parser(
                name,
                help=recipe.description.replace("%", "%%"),  # argparse would fill something in
                description=inspect.getdoc(settings[0]),
            )
            for one in settings:
                add_settings(kind, one, model={"choices": tuple(recipe.models)})
            kind.set_defaults(prepare=_prepare_recipe, of=recipe)


def run(args: argparse.Namespace) -> int:
    """Prepare one of them."""
    args.prepare(args)
    return 0


def _require_free(name: str, own: Collection[str]) -> None:
    if name in own:
        raise UserError(
            f"the recipe {name!r} is named as deltasam prepare {name}, which is something else; "
            f"rename the recipe, to my/{name} say"
        )


def _prepare_text(args: argparse.Namespace) -> None:
    files = text_files(args)
    if files is not None:
        origin = text_origin(files, held_out=args.hold_out)
        tokens = TokenSettings(**values_of(TokenSettings, args))
        prepare_pairs(args.out, origin, tokens, workers=args.workers, force=args.force)


def _prepare_recipe(args: argparse.Namespace) -> None:
    recipe: Recipe = args.of
    settings = (one(**values_of(one, args)) for one in recipe.kind.prepare_settings)
    recipe.kind.prepare(recipe, *settings)
