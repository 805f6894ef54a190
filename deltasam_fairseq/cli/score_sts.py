"""Semantic textual similarity, the "all" setting: one Spearman over a year's pooled pairs.

Each file of predictions has one similarity per line (a cosine, say; any scale), each file of
gold scores one score per line; the two lists are in the same order. For STS12, for example,
give its five files each. An empty gold line is a pair that nobody scored: it is left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from deltasam_fairseq.data.aligned import read_lines
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.sts import sts_scores

HELP = "Spearman over a year's pooled pairs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two lists of files."""
    for flag, text in (
        ("--predictions", "one similarity per line"),
        ("--gold", "one gold score per line; as many files, in the same order"),
    ):
        parser.add_argument(flag, type=Path, nargs="+", required=True, metavar="FILE", help=text)


def run(args: argparse.Namespace) -> None:
    """Score, and print.

    Raises:
        UserError: If the lists are not equally long, or name a file of gold scores twice.
    """
    if len(args.predictions) != len(args.gold):
        raise UserError(
            f"{len(args.predictions)} files of predictions but {len(args.gold)} of gold scores"
        )
    if len(set(args.gold)) < len(args.gold):
        raise UserError("--gold names a file twice")
    report = sts_scores(
        {
            str(gold): (read_lines(predictions), read_lines(gold))
            for predictions, gold in zip(args.predictions, args.gold, strict=True)
        }
    )
    if args.json:
        print(json.dumps(report.as_json()))
        return
    print(f"spearman {report.spearman:7.2f}   all {report.n} pairs: the paper's")
    print(f"pearson  {report.pearson:7.2f}")
    for name, (value, n) in report.files.items():
        print(f"spearman {value:7.2f}   {n} pairs of {name}")
    print(f"\nn = {report.n}, {report.signature}")
