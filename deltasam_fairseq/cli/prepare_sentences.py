"""Check, cut and binarize the tables of a task on sentences for one of its models.

The folder is that of the official archive, with train.tsv, dev.tsv and test.tsv
(MNLI: dev_matched.tsv and so on), or one that holds such a folder. The model's own
vocabulary is in the folder that deltasam prepare encoder made.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from deltasam_fairseq.cli.options import add_number, whole_number
from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.data.prepare_sentences import SentenceOptions, prepare_sentences
from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.places import data_folder, encoder_folder


def add_arguments(parser: argparse.ArgumentParser, recipe: Recipe) -> None:
    """Add tables, model, vocabulary and what to do with odd rows.

    Args:
        parser: Of this recipe.
        recipe: The recipe.
    """
    parser.add_argument(
        "--glue",
        "--tables",
        dest="tables",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the tables, or of folders of tables",
    )
    parser.add_argument(
        "--model", choices=tuple(recipe.models), required=True, help="whose vocabulary"
    )
    parser.add_argument("--encoder", type=Path, metavar="DIR", help="default: models/MODEL")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: data/RECIPE/MODEL")
    parser.add_argument(
        "--max-tokens", type=whole_number, metavar="N", help="longest input; default: the model's"
    )
    parser.add_argument(
        "--skip-malformed",
        action="store_true",
        help="leave malformed rows of labelled files out, and say which",
    )
    parser.add_argument(
        "--strict-counts", action="store_true", help="stop if the numbers of rows are not known"
    )
    text = "processes; the result does not depend on it"
    add_number(parser, "--workers", os.cpu_count() or 1, text)
    parser.add_argument("--force", action="store_true", help="make it anew in any case")
    parser.set_defaults(prepare=partial(run, recipe))


def run(recipe: Recipe, args: argparse.Namespace) -> None:
    """Prepare the folder.

    Args:
        recipe: The recipe.
        args: Of :func:`add_arguments`.
    """
    if recipe.sentences is None:
        return
    options = SentenceOptions(
        max_tokens=args.max_tokens or recipe.model(args.model).max_tokens,
        skip_malformed=args.skip_malformed,
        strict=args.strict_counts,
        workers=args.workers,
    )
    prepare_sentences(
        args.out or data_folder(recipe.name, args.model),
        recipe.sentences,
        args.tables,
        PreparedEncoder.load(args.encoder or encoder_folder(args.model)),
        options,
        force=args.force,
    )
