"""Decode a split with a run's best checkpoint and score it with ROUGE.

Writes RUN/generate-SPLIT/{hypotheses,references}.txt and scores.json, which
also holds two baselines that need no training. Any further flag goes to
fairseq-generate and replaces the recipe's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deltasam_fairseq.analysis.table import as_text, build_table
from deltasam_fairseq.cli.options import whole_number
from deltasam_fairseq.data.prepared import PreparedData
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.rouge import SPLITTERS
from deltasam_fairseq.recipes.catalogue import RECIPES
from deltasam_fairseq.recipes.generation import generate
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.scoring import score_run

HELP = "decode a split with a run's best checkpoint and score it"
#: Unknown arguments are no error but ``args.extra``: they are fairseq's.
PASSES_ON = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add run, split and how to decode and score."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of deltasam train")
    parser.add_argument("--split", choices=("test", "valid"), default="test", help="(%(default)s)")
    parser.add_argument("--beam", type=whole_number, metavar="N", help="default: the recipe's")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="where the data folder is now, if it was moved"
    )
    parser.add_argument(
        "--sentence-split",
        choices=tuple(SPLITTERS),
        default="newline",
        help="how ROUGE-Lsum tells sentences apart (%(default)s)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace results of another checkpoint"
    )


def run(args: argparse.Namespace) -> int:
    """Decode, score and print a table.

    Args:
        args: Of :func:`add_arguments`, and ``extra``.

    Returns:
        Zero.

    Raises:
        UserError: If the data folder is not the one that the run was trained on.
    """
    folder = RunFolder(args.run_dir)
    record = folder.record()
    data = PreparedData.load(args.data or Path(record["data"]))
    if data.sha256 != record["data_sha256"]:
        raise UserError(
            f"{data.path} is not what {folder.path} was trained on: its content has changed; "
            "give the old one with --data, or train again"
        )
    overrides = [*(["--beam", str(args.beam)] if args.beam else []), *args.extra]
    recipe = RECIPES.get(record["recipe"])
    generated = generate(recipe, data, folder, args.split, overrides=overrides, force=args.force)
    score_run(data, generated, args.split, sentence_split=args.sentence_split)
    print()
    print(as_text(build_table([folder.path], args.split)))
    return 0
