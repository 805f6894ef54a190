"""The metrics of a GLUE task; the one that the paper's tables have is marked.

Both files have one class per line, as GLUE names it or by number, or one score per line
(STS-B). F1 and Matthews' coefficient take 1 for the positive class.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from deltasam_fairseq.data.aligned import read_lines
from deltasam_fairseq.evaluation.glue import TASKS, glue_scores

HELP = "accuracy, F1, Matthews, Pearson, Spearman, as the GLUE task has them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add task and files."""
    names = ", ".join(task.name for task in TASKS.values())
    parser.add_argument("task", metavar="TASK", help=names)
    parser.add_argument("predictions", type=Path, help="one class or score per line")
    parser.add_argument("labels", type=Path, help="the true ones")


def run(args: argparse.Namespace) -> None:
    """Score, and print."""
    report = glue_scores(args.task, read_lines(args.predictions), read_lines(args.labels))
    if args.json:
        print(json.dumps(report.as_json()))
        return
    for name, value in report.scores.items():
        mark = "   the paper's" if name == report.task.metrics[0] else ""
        print(f"{name:9} {value:7.2f}{mark}")
    print(f"\nn = {report.n}, {report.signature}")
