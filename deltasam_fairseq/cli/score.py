"""Score what a model has made: one METRIC per kind of output, and aggregation over seeds.

deltasam score rouge HYPOTHESES REFERENCES
deltasam score bleu HYPOTHESES REFERENCES…
deltasam score glue TASK PREDICTIONS LABELS
deltasam score sts --predictions FILE… --gold FILE…
deltasam score aggregate SEED1.json SEED2.json…

Files are UTF-8 with one text, label or number per line; line n of one file belongs to line n
of the other. With --json a score is one JSON object, which `aggregate` reads.
"""

from __future__ import annotations

import argparse

from deltasam_fairseq.cli import score_aggregate, score_bleu, score_glue, score_rouge, score_sts

HELP = "score files: ROUGE, BLEU, GLUE, STS; aggregate scores over seeds"

METRICS = {
    "rouge": score_rouge,
    "bleu": score_bleu,
    "glue": score_glue,
    "sts": score_sts,
    "aggregate": score_aggregate,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the metrics and their arguments."""
    metrics = parser.add_subparsers(metavar="METRIC", required=True)
    for name, module in METRICS.items():
        metric = metrics.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(metric)
        metric.add_argument("--json", action="store_true", help="print one JSON object")
        metric.set_defaults(score=module.run)


def run(args: argparse.Namespace) -> int:
    """Score with one metric and return zero."""
    args.score(args)
    return 0
