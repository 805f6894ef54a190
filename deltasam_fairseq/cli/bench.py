"""Measure what the methods cost, side by side on synthetic input.

deltasam bench step                  time and peak memory per update, as a table
deltasam bench step --json > FILE    the same as one JSON object
deltasam bench step --check          fails if a limit is not kept
deltasam bench launches              operations, allocations and waits of an update, counted
deltasam bench show RECORD …         records as the tables of docs/per_instance.md

per_instance over sam by the length of sentences is a study: scripts/studies of a checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deltasam_fairseq.benchmarks.plan import LaunchesPlan, Plan
from deltasam_fairseq.benchmarks.table import markdown_of, table_of, verdict
from deltasam_fairseq.benchmarks.variants import REGULARIZED, REGULARIZERS
from deltasam_fairseq.cli.options import add_settings, values_of

HELP = "measure time and memory per update"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmarks and their arguments."""
    benchmarks = parser.add_subparsers(metavar="BENCHMARK", required=True)
    step = benchmarks.add_parser(
        "step",
        help="time and peak memory per update of the methods",
        description="Time and peak memory per update of the methods, taking turns in one process.",
    )
    launches = benchmarks.add_parser(
        "launches",
        help="operations, allocations and synchronizations of one update",
        description="Operations, allocations and synchronizations of one update, counted.",
    )
    measured: tuple[tuple[argparse.ArgumentParser, type, Callable[..., int]], ...] = (
        (step, Plan, _step),
        (launches, LaunchesPlan, _launches),
    )
    for benchmark, plan, runs in measured:
        add_settings(benchmark, plan)
        benchmark.add_argument("--json", action="store_true", help="one JSON object, not a table")
        benchmark.add_argument(
            "--check", action="store_true", help="exit with 1 if a limit is not kept"
        )
        benchmark.set_defaults(benchmark=runs)
    step.add_argument(
        "--regularizers",
        action="store_true",
        help=f"also {', '.join(REGULARIZERS)}, alone and with each method, and count passes",
    )
    show = benchmarks.add_parser(
        "show",
        help="records as a Markdown table",
        description="Records of deltasam bench step as a Markdown table.",
    )
    show.add_argument("records", type=Path, nargs="+", metavar="RECORD", help="made with --json")
    show.set_defaults(benchmark=_show)


def run(args: argparse.Namespace) -> int:
    """Run one benchmark; progress goes to standard error.

    Returns:
        Zero; with ``--check`` one if a limit is not kept.
    """
    status: int = args.benchmark(args)
    return status


def _show(args: argparse.Namespace) -> int:
    print(markdown_of(args.records))
    return 0


def step_plan(args: argparse.Namespace) -> Plan:
    """Return what the arguments of ``step`` ask to be measured."""
    values = values_of(Plan, args)
    if args.regularizers:
        # The loop is left out: it takes much longer than all others.
        own = [m for m in values["methods"] if m not in {"per_instance_loop", *REGULARIZED}]
        values["methods"] = (*own, *REGULARIZED)
    return Plan(**values)


def _step(args: argparse.Namespace) -> int:
    # Read when torch is loaded: its profiler, which counts memory, is talkative.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    plan = step_plan(args)
    # Only now, because importing fairseq takes seconds.
    from deltasam_fairseq.benchmarks.record import record_of, surroundings  # noqa: PLC0415
    from deltasam_fairseq.benchmarks.step import measure  # noqa: PLC0415

    around = surroundings()
    record = record_of(plan, [measure(model, plan, _say) for model in plan.models], around)
    if args.check and not record["checks"]:
        _say("no limit was checked: none applies to methods, models and batches of this kind")
    return _report(args, record, table_of)


def _launches(args: argparse.Namespace) -> int:
    plan = LaunchesPlan(**values_of(LaunchesPlan, args))
    from deltasam_fairseq.benchmarks.launches import (  # noqa: PLC0415
        count,
        launches_record_of,
        launches_table_of,
    )
    from deltasam_fairseq.benchmarks.record import surroundings  # noqa: PLC0415

    around = surroundings()
    record = launches_record_of(plan, [count(model, plan, _say) for model in plan.models], around)
    return _report(args, record, launches_table_of)


def _report(
    args: argparse.Namespace, record: dict[str, Any], table: Callable[[Mapping[str, Any]], str]
) -> int:
    print(json.dumps(record, indent=2) if args.json else table(record))
    failed = [check for check in record["checks"] if not check["passed"]]
    if args.check and args.json:
        for check in failed:
            _say(verdict(check))
    return 1 if args.check and failed else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
