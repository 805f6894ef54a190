"""Embed sentences with a model of the recipe mirror.

deltasam embed RUN FILE --out vectors.npy

FILE is UTF-8 with one sentence a line. The vectors are float32 of shape (sentences, D), pooled as
in training and not normalised; numpy.load reads them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deltasam_fairseq.data.mirror import read_sentences
from deltasam_fairseq.errors import UserError, check_place
from deltasam_fairseq.recipes.catalogue import recipe_of
from deltasam_fairseq.recipes.embedding import embed_file
from deltasam_fairseq.recipes.kinds.sentences_to_embed import SentencesToEmbed
from deltasam_fairseq.recipes.run_folder import RunFolder

HELP = "sentences with a run's model, as a file of NumPy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run, the sentences and where the vectors go."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of deltasam train")
    parser.add_argument("file", type=Path, metavar="FILE", help="one sentence per line")
    parser.add_argument("--out", type=Path, required=True, metavar="NPY", help="the vectors")
    parser.add_argument("--data", type=Path, metavar="DIR", help="if the data folder was moved")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")


def run(args: argparse.Namespace) -> int:
    """Embed them."""
    check_place(args.out, "vectors.npy")
    folder = RunFolder(args.run_dir)
    recipe = recipe_of(folder.record(), args.recipe_file)
    if not isinstance(recipe.kind, SentencesToEmbed):
        raise UserError(f"{folder.path} is of the recipe {recipe.name}, which embeds no sentences")
    lines = read_sentences(args.file)
    data = recipe.kind.load_trained(folder, args.data)
    shape = embed_file(folder, data, recipe.kind.trained(folder), lines, args.out, cpu=args.cpu)
    print(f"{args.out}: float32 of shape {shape}")
    return 0
