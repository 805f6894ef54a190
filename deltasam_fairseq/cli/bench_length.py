"""Measure a batched per-instance step against the length of the sentences."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.figures import check_figure

if TYPE_CHECKING:
    from deltasam_fairseq.benchmarks.length_plan import LengthPlan

HELP = "a batched per-instance step over a SAM step, by sequence length"
_NUMBERS = (
    ("width", 384, "of the layers"),
    ("heads", 12, "of each attention"),
    ("layers", 2, "of the model"),
    ("words", 8000, "of the vocabulary"),
    ("batch-tokens", 1024, "tokens of every batch"),
    ("repeats", 7, "rounds"),
    ("warm-up", 2, "steps before"),
    ("threads", 0, "0: all cores"),
    ("seed", 1, ""),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add sizes, how often, and what comes out."""
    parser.add_argument(
        "--lengths",
        default="16,32,64,128,256,512,1024",
        metavar="A,B,…",
        help="tokens of a sentence (%(default)s)",
    )
    for name, default, meaning in _NUMBERS:
        parser.add_argument(
            f"--{name}",
            type=int,
            default=default,
            metavar="N",
            help=f"{meaning} (%(default)s)".strip(),
        )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument(
        "--clock",
        default="elapsed",
        help="elapsed time, or processor time for one thread on a busy machine (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, not a table")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw it: .png, .pdf or .svg"
    )


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; progress goes to standard error.

    Args:
        args: Of :func:`add_arguments`.

    Returns:
        Zero.
    """
    plan = length_plan_of(args)
    if args.plot:
        check_figure(args.plot)
    # Only now, because importing torch takes seconds.
    from deltasam_fairseq.benchmarks.length import measure_lengths  # noqa: PLC0415
    from deltasam_fairseq.benchmarks.length_plot import draw_lengths  # noqa: PLC0415
    from deltasam_fairseq.benchmarks.length_record import (  # noqa: PLC0415
        length_record_of,
        length_table_of,
    )
    from deltasam_fairseq.benchmarks.record import surroundings  # noqa: PLC0415

    around = surroundings()
    record = length_record_of(plan, measure_lengths(plan, _say), around)
    print(json.dumps(record, indent=2) if args.json else length_table_of(record))
    if args.plot:
        draw_lengths(record, args.plot)
    return 0


def length_plan_of(args: argparse.Namespace) -> LengthPlan:
    """Turn arguments into what is run.

    Args:
        args: Of :func:`add_arguments`.

    Returns:
        The plan; making it refuses what cannot be run.

    Raises:
        UserError: If a length is not a number.
    """
    from deltasam_fairseq.benchmarks.length_plan import LengthPlan  # noqa: PLC0415

    try:
        lengths = tuple(int(length) for length in args.lengths.split(","))
    except ValueError:
        raise UserError(
            f"--lengths must be numbers with commas between, got {args.lengths!r}"
        ) from None
    numbers = {name.replace("-", "_") for name, _, _ in _NUMBERS}
    given = {name: getattr(args, name) for name in sorted(numbers)}
    return LengthPlan(lengths=lengths, device=args.device, clock=args.clock, **given)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
