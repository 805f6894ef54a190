"""Run a run's best checkpoint over a split and score it with the metric of its recipe.

Summaries: writes RUN/generate-SPLIT/{hypotheses,references}.txt and scores.json,
which also holds two baselines that need no training. Any further flag goes to
fairseq-generate and replaces the recipe's.

Tasks on sentences: writes RUN/predict-SPLIT/predictions.txt and scores.json with all
metrics of the task over the whole split; for a split without labels, the file that
GLUE's server takes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deltasam_fairseq.analysis.rouge_tables import run_table
from deltasam_fairseq.analysis.table import as_text
from deltasam_fairseq.cli.options import add_settings, values_of
from deltasam_fairseq.cli.parser import unrecognized
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.catalogue import recipe_of
from deltasam_fairseq.recipes.evaluation import EvaluationOptions
from deltasam_fairseq.recipes.run_folder import RunFolder

HELP = "decode a split with a run's best checkpoint and score it"
#: Unknown arguments are no error but ``args.extra``: they are fairseq's.
PASSES_ON = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add run, split and how to decode and score."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of deltasam train")
    add_settings(parser, EvaluationOptions)


def run(args: argparse.Namespace) -> int:
    """Evaluate a run by the kind of its data, and print its scores."""
    folder = RunFolder(args.run_dir)
    recipe = recipe_of(folder.record(), args.recipe_file)
    if args.extra and not recipe.kind.passes_on:
        raise UserError(unrecognized(args.extra, args.known_flags))
    options = EvaluationOptions(**values_of(EvaluationOptions, args), extra=args.extra)
    found = recipe.kind.evaluate(recipe, folder, options)
    if found.in_table:
        print(f"\n{as_text(run_table([folder.path], found.split))}")
    for line in found.lines:
        print(line)
    return 0
