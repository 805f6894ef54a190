"""Look into a trained model, or into what precision does to one.

deltasam analyse curve RUN
    draw loss, sharpness and effective number of sentences per update
deltasam analyse adversarial-risk RUN
    mean loss over each sentence's own worst weights within rho (Eq. 2)
deltasam analyse estimator-quality RUN
    what the weights of each estimator are worth, against exact quantities
deltasam analyse probe-precision --encoder FOLDER --mrpc train.tsv --json > RECORD
    measure what each precision leaves of the weights of Eq. 5
deltasam analyse probe-precision --random roberta-large --json > RECORD
    the same with random weights of that size
deltasam analyse probe-precision --show RECORD RECORD
    the tables of docs/precision.md
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from deltasam_fairseq.analysis.curve import draw_curve
from deltasam_fairseq.analysis.kept_record import read_record
from deltasam_fairseq.analysis.probe_precision_table import tables_of
from deltasam_fairseq.cli import analyse_quality, analyse_risk
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.run_folder import RunFolder

HELP = "a run's learning curve and adversarial risk; measure precisions"


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
    quality = analyses.add_parser(
        "estimator-quality",
        help=analyse_quality.HELP,
        description=analyse_quality.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    analyse_quality.add_arguments(quality)
    quality.set_defaults(analyse=analyse_quality.run)
    probe = analyses.add_parser(
        "probe-precision",
        help="what each precision leaves of the weights of Eq. 5",
        description="Losses at w, w + r and w - r in every precision, against float64.",
    )
    _add_probe_precision(probe)
    probe.set_defaults(analyse=_probe_precision)


def run(args: argparse.Namespace) -> int:
    """Run one analysis.

    Args:
        args: Of :func:`add_arguments`.

    Returns:
        Zero.
    """
    args.analyse(args)
    return 0


def _curve(args: argparse.Namespace) -> None:
    out: Path = args.out or args.run_dir / "curve.png"
    draw_curve(RunFolder(args.run_dir), out)
    print(out)


def _add_probe_precision(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--encoder",
        type=Path,
        metavar="FOLDER",
        help="a BERT: config.json, weights, vocab.txt or tokenizer.json; needs --mrpc",
    )
    what.add_argument("--random", metavar="SIZE", help="random weights: roberta-large or tiny")
    what.add_argument(
        "--show", type=Path, nargs="+", metavar="RECORD", help="print the tables of records"
    )
    parser.add_argument("--mrpc", type=Path, metavar="TSV", help="train.tsv of MRPC")
    parser.add_argument("--rho", default="0.01,0.02,0.05", metavar="A,B,…", help="(%(default)s)")
    parser.add_argument("--eta", type=float, default=1e-4, help="(%(default)s)")
    for name, default, meaning in (
        ("batches", 20, "how many"),
        ("sentences", 16, "in a batch"),
        ("tokens", 48, "in a sentence, with --random"),
        ("tune", 40, "updates of Adam before, with --encoder"),
        ("seed", 1, ""),
        ("threads", 2, "of one operator"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{meaning} (%(default)s)"
        )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=0.0, metavar="M", help="no further batch after (0: all)"
    )
    parser.add_argument("--no-dropout", action="store_true", help="no rows with dropout on")
    parser.add_argument("--json", action="store_true", help="one JSON object, not a table")


def _probe_precision(args: argparse.Namespace) -> None:
    if args.show:
        print(tables_of([read_record(path, "probe-precision") for path in args.show]))
        return
    record = _probed(args)
    print(json.dumps(record, indent=2, ensure_ascii=False) if args.json else tables_of([record]))


def _probed(args: argparse.Namespace) -> dict[str, object]:
    from deltasam_fairseq.analysis import probe_precision_run  # noqa: PLC0415
    from deltasam_fairseq.analysis.probe_precision_record import Settings  # noqa: PLC0415
    from deltasam_fairseq.benchmarks.record import surroundings  # noqa: PLC0415

    try:
        radii = tuple(float(radius) for radius in args.rho.split(","))
    except ValueError:
        raise UserError(f"--rho must be numbers with commas between, got {args.rho!r}") from None
    if args.encoder and not args.mrpc:
        raise UserError("--encoder needs sentences: --mrpc TSV")
    names = (
        "eta",
        "batches",
        "sentences",
        "tokens",
        "tune",
        "seed",
        "threads",
        "device",
        "minutes",
    )
    given = {name: getattr(args, name) for name in names}
    settings = Settings(rho=radii, dropout=not args.no_dropout, **given)
    around = surroundings()
    if args.encoder:
        return probe_precision_run.run_pretrained(args.encoder, args.mrpc, settings, around, _say)
    return probe_precision_run.run_random(args.random, settings, around, _say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
