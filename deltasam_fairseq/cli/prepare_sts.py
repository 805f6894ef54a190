"""Read the seven STS sets of Table 2 as their organisers released them.

Finds STS12-en-test to STS16-en-test (STS.input.*.txt with STS.gs.*.txt), STSBenchmark and
SICK_test_annotated.txt below the given folders. Files must be raw and cased; SentEval's are not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deltasam_fairseq.data.sts import prepare_sts
from deltasam_fairseq.recipes.embedding import STS_FOLDER

HELP = "the seven STS sets, as released"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the sets are and where they go."""
    parser.add_argument(
        "--sts", type=Path, nargs="+", required=True, metavar="DIR", help="folders that hold them"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=STS_FOLDER,
        metavar="DIR",
        help="the folder to make (%(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="make it anew in any case")


def run(args: argparse.Namespace) -> None:
    """Prepare them."""
    prepare_sts(args.out, args.sts, force=args.force)
