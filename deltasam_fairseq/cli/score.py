"""Score files of summaries, line by line.

deltasam score rouge HYPOTHESES REFERENCES
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from deltasam_fairseq.data.aligned import read_lines
from deltasam_fairseq.evaluation.rouge import SPLITTERS, RougeReport, rouge_scores

HELP = "score two aligned files of summaries"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the metrics and their arguments."""
    metrics = parser.add_subparsers(metavar="METRIC", required=True)
    rouge = metrics.add_parser("rouge", help="ROUGE-1, -2, -L and -Lsum")
    rouge.add_argument("hypotheses", type=Path, help="one summary per line; an empty one scores 0")
    rouge.add_argument("references", type=Path, help="one reference per line")
    rouge.add_argument("--json", action="store_true", help="print one JSON object")
    rouge.add_argument("--no-stemmer", action="store_true", help="compare words as they are")
    rouge.add_argument(
        "--sentence-split",
        choices=tuple(SPLITTERS),
        default="newline",
        help="how ROUGE-Lsum tells sentences apart: 'newline' takes a line of a file for one "
        "sentence, 'sentences' cuts behind . ! ? (%(default)s)",
    )
    rouge.set_defaults(score=_rouge)


def run(args: argparse.Namespace) -> int:
    """Score with one metric.

    Args:
        args: Of :func:`add_arguments`.

    Returns:
        Zero.
    """
    report: RougeReport = args.score(args)
    print(json.dumps(report.as_json()) if args.json else as_text(report))
    return 0


def as_text(report: RougeReport) -> str:
    """Write a report as a small table.

    Args:
        report: The report.

    Returns:
        Several lines.
    """
    lines = [f"{'':10} {'precision':>9} {'recall':>9} {'F':>9}"]
    lines += [
        f"{name:10} {score.precision:9.2f} {score.recall:9.2f} {score.fmeasure:9.2f}"
        for name, score in report.scores.items()
    ]
    return "\n".join([*lines, "", f"n = {report.n}, {report.signature}"])


def _rouge(args: argparse.Namespace) -> RougeReport:
    return rouge_scores(
        read_lines(args.hypotheses),
        read_lines(args.references),
        stemmer=not args.no_stemmer,
        split=args.sentence_split,
    )
