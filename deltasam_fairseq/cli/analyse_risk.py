"""Measure the mean loss over each sentence's own worst weights within rho (Eq. 2, Table 4)."""

from __future__ import annotations

import argparse
from pathlib import Path

from deltasam_fairseq.data.prepared_sentences import PreparedSentences
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.sweep import measure_risk

HELP = "the adversarial risk of Eq. 2, one sentence at a time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add run, radius and split."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of deltasam train")
    parser.add_argument(
        "--rho", type=float, default=0.05, help="radius; the paper's, for every method, is 0.05"
    )
    parser.add_argument("--split", default="valid", help="(%(default)s)")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="where the data folder is now, if it was moved"
    )
    parser.add_argument("--cpu", action="store_true", default=None, help="leave a GPU alone")


def run(args: argparse.Namespace) -> None:
    """Measure, and print one line.

    Args:
        args: Of :func:`add_arguments`.

    Raises:
        UserError: If the radius is not greater than zero.
    """
    if args.rho <= 0:
        raise UserError(f"--rho {args.rho:g}: a radius is greater than zero")
    folder = RunFolder(args.run_dir)
    data = PreparedSentences.load(args.data or Path(folder.record()["data"]))
    data.require_split(args.split)
    found = measure_risk(data, folder, args.split, args.rho, cpu=args.cpu)
    print(
        f"adversarial risk {found['risk']:.4f}, loss {found['loss']:.4f} (nats; rho "
        f"{found['rho']:g}, n = {found['n']}, {found['split']})"
    )
