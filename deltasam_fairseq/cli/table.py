"""Put runs and the baselines that need no training into one table.

deltasam table RUN RUN
    runs beside the baselines of their data
deltasam table --published cnndm RUN RUN
    runs beside the figures of the papers; without runs those alone
deltasam table 1
    GLUE: Table 1 of the paper beside the records of deltasam sweep
deltasam table 4
    adversarial risk and accuracy: Table 4 beside them
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deltasam_fairseq.analysis.cost_plot import draw_costs
from deltasam_fairseq.analysis.paper_tables import table_1, table_4
from deltasam_fairseq.analysis.published import PUBLISHED, build_published
from deltasam_fairseq.analysis.table import FORMATS, build_table
from deltasam_fairseq.errors import UserError

HELP = "compare runs in a table"

#: By their number in the paper.
PAPER_TABLES = {"1": table_1, "4": table_4}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the runs and the format."""
    parser.add_argument(
        "runs", type=Path, nargs="*", metavar="RUN", help="folders of runs, or 1 or 4 alone"
    )
    parser.add_argument(
        "--sweeps",
        type=Path,
        nargs="+",
        default=[Path("sweeps")],
        metavar="DIR",
        help="for 1 and 4: folders with sweeps below them (sweeps)",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="PNG",
        help="for 1 and 4: draw metric against seconds of training as well",
    )
    parser.add_argument(
        "--published", choices=tuple(PUBLISHED), help="put them beside these published figures"
    )
    parser.add_argument("--split", choices=("test", "valid"), default="test", help="(%(default)s)")
    parser.add_argument("--format", choices=tuple(FORMATS), default="text", help="(%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Print the table.

    Args:
        args: Of :func:`add_arguments`.

    Returns:
        Zero.

    Raises:
        UserError: If there is nothing to show.
    """
    number = str(args.runs[0]) if len(args.runs) == 1 else ""
    if args.plot and number not in PAPER_TABLES:
        raise UserError(f"--plot goes with {' or '.join(PAPER_TABLES)}; see deltasam analyse curve")
    if number in PAPER_TABLES:
        table = PAPER_TABLES[number](args.sweeps)
    elif args.published:
        table = build_published(args.published, args.runs, args.split)
    elif args.runs:
        table = build_table(args.runs, args.split)
    else:
        raise UserError(
            f"nothing to show: give runs, {' or '.join(PAPER_TABLES)}, or --published "
            f"{' or '.join(PUBLISHED)}"
        )
    print(FORMATS[args.format](table))
    if args.plot:
        draw_costs(args.sweeps, args.plot)
        print(f"\n{args.plot}", file=sys.stderr)
    return 0
