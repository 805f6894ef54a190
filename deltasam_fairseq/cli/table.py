"""Put runs and the baselines that need no training into one table.

deltasam table RUN RUN
    runs beside the baselines of their data
deltasam table 3 RUN RUN
    ROUGE on CNN/DailyMail: Table 3 beside runs; without runs the published figures alone
    (the same as --published cnndm RUN RUN)
deltasam table 1
    GLUE: Table 1 of the paper beside the records of deltasam sweep
deltasam table 2
    sentence embeddings: Table 2 beside the records of deltasam sweep mirror
deltasam table 4
    adversarial risk and accuracy: Table 4 beside them
deltasam table 6
    minutes of training: Table 6 beside them, and times over those without perturbation
deltasam table grid
    every point of every search, of which tables 1 and 4 show the best alone
deltasam table significance
    each method against none, delta_sam against random as well: paired tests over the same
    seeds, and over sentences
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from deltasam_fairseq.analysis.figures import draw_costs
from deltasam_fairseq.analysis.grid_table import grid_table
from deltasam_fairseq.analysis.paper_tables import table_1, table_2, table_4, table_6
from deltasam_fairseq.analysis.rouge_tables import PUBLISHED, run_table, table_3
from deltasam_fairseq.analysis.table import FORMATS, Table
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.figures import check_figure
from deltasam_fairseq.registry import did_you_mean

HELP = "compare runs in a table"

#: Made from runs, by its number in the paper.
TEXTS = "3"
GRID = "grid"
SIGNIFICANCE = "significance"


def _significance(args: argparse.Namespace) -> Table:
    from deltasam_fairseq.analysis.significance import significance  # noqa: PLC0415 - needs numpy

    return significance(args.sweeps, recipe=args.recipe, model=args.model, base=args.base)


#: Made from the records of sweeps, by their number in the paper or their name.
SWEEP_TABLES: dict[str, Callable[[argparse.Namespace], Table]] = {
    "1": lambda args: table_1(args.sweeps, statistics=args.statistics, model=args.model),
    "2": lambda args: table_2(args.sweeps),
    "4": lambda args: table_4(args.sweeps, statistics=args.statistics),
    "6": lambda args: table_6(args.sweeps),
    GRID: lambda args: grid_table(args.sweeps, recipe=args.recipe, model=args.model),
    SIGNIFICANCE: _significance,
}
#: All that need no runs.
_NAMES = sorted((TEXTS, *SWEEP_TABLES))
#: Options, and the tables that they belong to.
_ONLY = {
    "plot": ("1", "4", "6"),
    "statistics": ("1", "4"),
    "recipe": (GRID, SIGNIFICANCE),
    "model": ("1", GRID, SIGNIFICANCE),
    "base": (SIGNIFICANCE,),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the runs and the format."""
    parser.add_argument(
        "runs",
        type=Path,
        nargs="*",
        metavar="RUN",
        help=f"folders of runs, behind {TEXTS} or not, or one of {', '.join(SWEEP_TABLES)} alone",
    )
    parser.add_argument(
        "--sweeps",
        type=Path,
        nargs="+",
        default=[Path("sweeps")],
        metavar="DIR",
        help=f"for {', '.join(SWEEP_TABLES)}: folders with sweeps below them (sweeps)",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="for 1, 4 and 6: draw metric against seconds of training as well, as .png, .pdf or "
        ".svg",
    )
    parser.add_argument(
        "--statistics",
        action="store_true",
        help="for 1 and 4: mean and standard deviation over seeds as well",
    )
    parser.add_argument("--recipe", help=f"for {GRID} and {SIGNIFICANCE}: this one alone")
    parser.add_argument("--model", help=f"for 1, {GRID} and {SIGNIFICANCE}: this one alone")
    parser.add_argument(
        "--base",
        metavar="METHOD",
        help=f"for {SIGNIFICANCE}: what to compare with (none, for delta_sam random too)",
    )
    parser.add_argument(
        "--published", choices=PUBLISHED, help="put them beside these published figures"
    )
    parser.add_argument("--split", choices=("test", "valid"), default="test", help="(%(default)s)")
    parser.add_argument("--format", choices=tuple(FORMATS), default="text", help="(%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    name = str(args.runs[0]) if len(args.runs) == 1 else ""
    for option, tables in _ONLY.items():
        if getattr(args, option) and name not in tables:
            raise UserError(f"--{option} goes with {' or '.join(tables)}; see deltasam table -h")
    if args.plot:
        check_figure(args.plot)
    print(FORMATS[args.format](_make_table(name, args)))
    if args.plot:
        draw_costs(args.sweeps, args.plot)
        print(f"\n{args.plot}", file=sys.stderr)
    return 0


def _make_table(name: str, args: argparse.Namespace) -> Table:
    if args.runs and str(args.runs[0]) == TEXTS:
        return table_3(args.runs[1:], args.split)
    if name in SWEEP_TABLES:
        if args.published:
            raise UserError(f"--published goes with runs, not with table {name}")
        for folder in args.sweeps:
            # The default may be missing: then nothing was run, and the tables say so.
            if folder != Path("sweeps") and not folder.is_dir():
                raise UserError(f"--sweeps {folder}: no such folder")
        return SWEEP_TABLES[name](args)
    if args.runs and not any(run.is_dir() for run in args.runs):
        raise UserError(
            f"no such run: {', '.join(map(str, args.runs))}; the tables that need no runs are "
            f"{', '.join(_NAMES)}, one at a time"
            f"{did_you_mean(name, SWEEP_TABLES)}"
        )
    if args.published:
        return table_3(args.runs, args.split)
    if args.runs:
        return run_table(args.runs, args.split)
    raise UserError(
        f"nothing to show: give runs, one of {', '.join(_NAMES)}, or --published "
        f"{' or '.join(PUBLISHED)}"
    )
