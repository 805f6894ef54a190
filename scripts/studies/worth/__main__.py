"""What is each method worth: which scores best, and is flattest, at the radius that suits it?

Every draw has training sentences of its own and is trained by all systems, at all radii; called
again, it goes on. The answer is in docs/worth.md.

    python -m scripts.studies.worth --condition sst-2-40 --glue DIR --encoder DIR --out DIR
    python -m scripts.studies.worth --condition sst-2-40 --out DIR --collect --json > RECORD
    python -m scripts.studies.worth --show RECORD … --plot FILE

The encoder is MiniLM, as ``deltasam prepare encoder`` makes it.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.sweep_plan import read_seeds
from scripts.studies.shared import run, study_parser
from scripts.studies.worth.plan import CONDITIONS, SYSTEMS
from scripts.studies.worth.report import draw, tables
from scripts.studies.worth.runs import collect, run_draw


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train what is missing, and collect all that is there."""
    if not (args.condition and args.out):
        raise UserError("say what to train and where to keep it: --condition NAME --out DIR")
    out = args.out / args.condition
    if not args.collect:
        if not (args.glue and args.encoder):
            raise UserError("give the tables and the model: --glue DIR --encoder DIR")
        # Standard output is for the record.
        with contextlib.redirect_stdout(sys.stderr):
            for seed in read_seeds(args.seeds):
                run_draw(
                    CONDITIONS[args.condition],
                    seed,
                    args.systems,
                    glue=args.glue,
                    encoder=args.encoder,
                    out=out / f"draw{seed}",
                )
    if not out.is_dir():
        raise UserError(f"{out}: nothing was trained there")
    return {"runs": collect(out)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study."""
    parser = study_parser("worth", __doc__)
    parser.add_argument("--condition", choices=CONDITIONS, help="data and epochs, of plan.py")
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="default: all"
    )
    parser.add_argument("--seeds", default="1-5", help="one draw each (%(default)s)")
    parser.add_argument("--glue", type=Path, metavar="DIR", help="the official folders")
    parser.add_argument("--encoder", type=Path, metavar="DIR", help="MiniLM, prepared")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where everything is kept")
    parser.add_argument("--collect", action="store_true", help="train nothing")
    run("worth", parser, measure, tables, arguments, draw=draw)


if __name__ == "__main__":
    main()
