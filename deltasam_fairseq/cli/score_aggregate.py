"""Mean, median, max, min and spread of a score over seeds, with their number.

Each file is what `deltasam score … --json` printed for one seed. All must have the same
signature and the same number of examples.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.aggregate import aggregate_reports

HELP = "mean, median, max and spread over seeds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the files."""
    parser.add_argument("reports", type=Path, nargs="+", metavar="JSON", help="one file per seed")


def run(args: argparse.Namespace) -> None:
    """Summarize, and print.

    Raises:
        UserError: If a file is named twice: a seed must not count twice.
    """
    if len(set(args.reports)) < len(args.reports):
        raise UserError("a file is named twice; a seed must not count twice")
    found = aggregate_reports({str(path): _read(path) for path in args.reports})
    if args.json:
        print(json.dumps({path: asdict(one) for path, one in found.items()}))
        return
    width = max(map(len, found))
    print(f"{'':{width}} {'mean':>8} {'median':>8} {'max':>8} {'min':>8} {'std':>8}  n")
    for path, one in found.items():
        values = (one.mean, one.median, one.max, one.min)
        numbers = " ".join(f"{value:8.2f}" for value in values)
        spread = f"{'-':>8}" if one.std is None else f"{one.std:8.2f}"
        print(f"{path:{width}} {numbers} {spread}  {one.n}")


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(report, dict):
        raise UserError(f"{path}: a JSON object is wanted, as deltasam score … --json prints")
    return report
