"""Count what one update asks of a GPU, without one."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from deltasam_fairseq.benchmarks.cost_model import PASSES

if TYPE_CHECKING:
    from deltasam_fairseq.benchmarks.launches_plan import LaunchesPlan

HELP = "operations, allocations and synchronizations of one update"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add models, methods, and what comes out."""
    parser.add_argument(
        "--model",
        default="translation,bert_base,roberta_large,bart_large",
        metavar="A,B,…",
        help="whose layers (%(default)s)",
    )
    parser.add_argument(
        "--methods", default=",".join(PASSES), metavar="A,B,…", help="which (%(default)s)"
    )
    parser.add_argument(
        "--size", default="narrow", help="of the models: narrow has all layers (%(default)s)"
    )
    for name, default, meaning in (
        ("warm-up", 2, "updates before the one that is counted"),
        ("repeats", 11, "rounds of the times that watching takes; 0: none"),
        ("seed", 1, "of data and models"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{meaning} (%(default)s)"
        )
    parser.add_argument("--json", action="store_true", help="one JSON object, not a table")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a limit is not kept")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; progress goes to standard error.

    Args:
        args: Of :func:`add_arguments`.

    Returns:
        Zero; with ``--check`` one if a limit is not kept.
    """
    plan = launches_plan_of(args)
    # Only now, because importing fairseq takes seconds.
    from deltasam_fairseq.benchmarks.launches import count  # noqa: PLC0415
    from deltasam_fairseq.benchmarks.launches_record import (  # noqa: PLC0415
        launches_record_of,
        launches_table_of,
    )
    from deltasam_fairseq.benchmarks.record import surroundings  # noqa: PLC0415

    around = surroundings()
    record = launches_record_of(plan, [count(model, plan, _say) for model in plan.models], around)
    print(json.dumps(record, indent=2) if args.json else launches_table_of(record))
    return int(args.check and not all(check["passed"] for check in record["checks"]))


def launches_plan_of(args: argparse.Namespace) -> LaunchesPlan:
    """Turn arguments into what is run.

    Args:
        args: Of :func:`add_arguments`.

    Returns:
        The plan; making it refuses what cannot be run.
    """
    from deltasam_fairseq.benchmarks.launches_plan import LaunchesPlan  # noqa: PLC0415

    return LaunchesPlan(
        models=tuple(args.model.split(",")),
        methods=tuple(args.methods.split(",")),
        size=args.size,
        warm_up=args.warm_up,
        repeats=args.repeats,
        seed=args.seed,
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
