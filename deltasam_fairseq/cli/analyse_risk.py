"""Measure the mean loss over each sentence's own worst weights within rho (Eq. 2, Table 4).

Writes RUN/predict-SPLIT/adversarial_risk.json, and adversarial_risk_sentences.json with
every sentence's loss, adversarial loss and norm of the gradient.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deltasam_fairseq.cli.options import add_scoring_options, positive_number
from deltasam_fairseq.data.labelled_sentences import PreparedSentences
from deltasam_fairseq.recipes.adversarial_risk import measure_risk
from deltasam_fairseq.recipes.run_folder import RunFolder

HELP = "the adversarial risk of Eq. 2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add run, radius and split."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of deltasam train")
    parser.add_argument(
        "--rho",
        type=positive_number,
        default=0.05,
        help="radius; the paper's, for every method, is 0.05",
    )
    parser.add_argument("--split", default="valid", help="(%(default)s)")
    parser.add_argument(
        "--engine",
        choices=("auto", "batched", "loop"),
        default="auto",
        help="whole batches at once, sentence by sentence, or the one where the other is not "
        "exact (%(default)s); the result is the same",
    )
    add_scoring_options(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, and print one line."""
    folder = RunFolder(args.run_dir)
    data = PreparedSentences.load(args.data or Path(folder.record()["data"]))
    data.require_split(args.split)
    found = measure_risk(
        data,
        folder,
        args.split,
        args.rho,
        cpu=args.cpu,
        engine=args.engine,
        batch_size=args.batch_size,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(
        f"adversarial risk {found['risk']:.4f}, loss {found['loss']:.4f} (nats; rho "
        f"{found['rho']:g}, n = {found['n']}, {found['split']}; {found['engine']}, "
        f"{found['seconds']:g} s)"
    )
