"""Look into a trained model.

deltasam analyse curve RUN
    draw loss, sharpness and effective number of sentences per update
deltasam analyse adversarial-risk RUN
    mean loss over each sentence's own worst weights within rho (Eq. 2)
deltasam analyse hard-sentences RUN
    the sentences with the largest gradients, risks or losses, to look at

Precisions and estimators were compared in studies: scripts/studies of a checkout.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deltasam_fairseq.analysis.figures import draw_curve
from deltasam_fairseq.cli import analyse_hard, analyse_risk
from deltasam_fairseq.recipes.run_folder import RunFolder

HELP = "a run's learning curve, adversarial risk and hard sentences"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the analyses and their arguments."""
    analyses = parser.add_subparsers(metavar="WHAT", required=True)
    curve = analyses.add_parser("curve", help="the learning curve, as a PNG")
    curve.add_argument("run_dir", type=Path, metavar="RUN", help="folder of deltasam train")
    curve.add_argument("--out", type=Path, metavar="PNG", help="default: RUN/curve.png")
    curve.set_defaults(analyse=_curve)
    risk = analyses.add_parser(
        "adversarial-risk", help=analyse_risk.HELP, description=analyse_risk.__doc__
    )
    analyse_risk.add_arguments(risk)
    risk.set_defaults(analyse=analyse_risk.run)
    hard = analyses.add_parser(
        "hard-sentences", help=analyse_hard.HELP, description=analyse_hard.__doc__
    )
    analyse_hard.add_arguments(hard)
    hard.set_defaults(analyse=analyse_hard.run)


def run(args: argparse.Namespace) -> int:
    """Run one analysis."""
    args.analyse(args)
    return 0


def _curve(args: argparse.Namespace) -> None:
    out: Path = args.out or args.run_dir / "curve.png"
    draw_curve(RunFolder(args.run_dir), out)
    print(out)
