"""Show the sentences of a split that a run finds hardest: mislabelled ones are among them.

A sentence has the norm of the gradient of its loss, its adversarial risk (its loss at its own
worst weights within rho, Eq. 2) and its loss. Losses of texts are sums over tokens, so long
texts come first.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deltasam_fairseq.cli.options import add_scoring_options, positive_number, whole_number
from deltasam_fairseq.errors import check_place
from deltasam_fairseq.files import write_json
from deltasam_fairseq.recipes.catalogue import recipe_of
from deltasam_fairseq.recipes.hard_sentences import ORDERS, HardSentence, hard_sentences
from deltasam_fairseq.recipes.run_folder import RunFolder

HELP = "the sentences with the largest gradients, risks or losses"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add run, split and order."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of deltasam train")
    parser.add_argument("--split", default="train", help="(%(default)s)")
    parser.add_argument(
        "--by",
        choices=ORDERS,
        default="risk",
        help="norm of the gradient, adversarial risk, or loss (%(default)s)",
    )
    parser.add_argument(
        "--top", type=whole_number, default=20, metavar="N", help="how many (%(default)s)"
    )
    parser.add_argument(
        "--rho", type=positive_number, default=0.05, help="radius of the risk (%(default)s)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write them there too, as a list of objects"
    )
    add_scoring_options(parser)


def run(args: argparse.Namespace) -> None:
    """Score the sentences, and print the hardest."""
    if args.json:
        check_place(args.json, "hard.json")
    folder = RunFolder(args.run_dir)
    recipe = recipe_of(folder.record(), args.recipe_file)
    found = hard_sentences(
        recipe,
        recipe.kind.load_trained(folder, args.data),
        folder,
        args.split,
        by=args.by,
        top=args.top,
        rho=args.rho,
        batch_size=args.batch_size,
        cpu=args.cpu,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if args.json:
        write_json(args.json, [sentence.as_json() for sentence in found])
    for place, sentence in enumerate(found, 1):
        print("\n".join(_lines(place, sentence)))


def _lines(place: int, sentence: HardSentence) -> list[str]:
    example = sentence.example
    scores = f"norm {sentence.norm:.4g}, risk {sentence.risk:.4g}, loss {sentence.loss:.4g}"
    answer = f"  target: {example.answer}"
    if example.prediction is not None:
        answer = f"  label: {example.answer}, predicted: {example.prediction}"
    return [
        f"{place}. line {sentence.number}: {scores}",
        answer,
        *(f"  {text}" for text in example.texts),
    ]
