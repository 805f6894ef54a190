"""Put runs and the baselines that need no training into one table."""

from __future__ import annotations

import argparse
from pathlib import Path

from deltasam_fairseq.analysis.table import FORMATS, build_table

HELP = "compare runs in a table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the runs and the format."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--split", choices=("test", "valid"), default="test", help="(%(default)s)")
    parser.add_argument("--format", choices=tuple(FORMATS), default="text", help="(%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Print the table.

    Args:
        args: Of :func:`add_arguments`.

    Returns:
        Zero.
    """
    print(FORMATS[args.format](build_table(args.runs, args.split)))
    return 0
