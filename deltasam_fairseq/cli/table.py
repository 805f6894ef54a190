"""Put runs and the baselines that need no training into one table.

deltasam table RUN RUN
    runs beside the baselines of their data
deltasam table --published cnndm RUN RUN
    runs beside the figures of the papers; without runs those alone
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deltasam_fairseq.analysis.published import PUBLISHED, build_published
from deltasam_fairseq.analysis.table import FORMATS, build_table
from deltasam_fairseq.errors import UserError

HELP = "compare runs in a table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the runs and the format."""
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="folders of runs")
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
    if args.published:
        table = build_published(args.published, args.runs, args.split)
    elif args.runs:
        table = build_table(args.runs, args.split)
    else:
        raise UserError(f"nothing to show: give runs, or --published {' or '.join(PUBLISHED)}")
    print(FORMATS[args.format](table))
    return 0
