"""BLEU, chrF and TER of detokenized translations, by sacreBLEU and with its signatures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from deltasam_fairseq.data.aligned import read_lines
from deltasam_fairseq.evaluation.bleu import TOKENIZERS, bleu_scores

HELP = "BLEU, chrF and TER, by sacreBLEU"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add files and settings."""
    parser.add_argument("hypotheses", type=Path, help="one translation per line")
    parser.add_argument(
        "references",
        type=Path,
        nargs="+",
        help="one reference per line; several files if there are, where a blank line is a "
        "reference that is absent",
    )
    parser.add_argument(
        "--tokenize",
        choices=TOKENIZERS,
        default=TOKENIZERS[0],
        help="sacreBLEU's tokenizer, of BLEU only (%(default)s)",
    )
    parser.add_argument("--lowercase", action="store_true", help="ignore case, in all three")


def run(args: argparse.Namespace) -> None:
    """Score, and print."""
    report = bleu_scores(
        read_lines(args.hypotheses),
        [read_lines(path) for path in args.references],
        tokenizer=args.tokenize,
        lowercase=args.lowercase,
    )
    if args.json:
        print(json.dumps(report.as_json()))
        return
    for name, found in report.scores.items():
        print(f"{name:4} {found.score:7.2f}   {found.signature}")
    print(f"\nn = {report.n}")
