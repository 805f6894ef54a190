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
from pathlib import Path
from typing import TYPE_CHECKING

from deltasam_fairseq.benchmarks.markdown import markdown_of
from deltasam_fairseq.cli import bench_launches

if TYPE_CHECKING:
    from deltasam_fairseq.benchmarks.plan import Plan

HELP = "measure time and memory per update"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmarks and their arguments."""
    benchmarks = parser.add_subparsers(metavar="BENCHMARK", required=True)
    step = benchmarks.add_parser(
        "step",
        help="time and peak memory per update of the methods",
        description="Time and peak memory per update of the methods, taking turns in one process.",
    )
    step.add_argument(
        "--model",
        default="both",
        metavar="A,B,…",
        help="translation, classification (both: these two), minilm, bert_base; for a GPU "
        "roberta_large, bart_large (%(default)s)",
    )
    step.add_argument(
        "--methods",
        default="none,sam,delta_sam,per_instance,per_instance_loop",
        metavar="A,B,…",
        help="which, in the order of their turns; per_instance is the batched engine; rivals and "
        "sums as in rdrop,sam+rdrop too (%(default)s)",
    )
    step.add_argument(
        "--regularizers",
        action="store_true",
        help="also rdrop, r3f, smart and freelb, alone and with each method, and count passes",
    )
    step.add_argument(
        "--sentences", type=int, default=0, metavar="N", help="in a batch (0: the model's own)"
    )
    step.add_argument(
        "--tokens",
        type=int,
        default=0,
        metavar="N",
        help="in each sentence and target (0: the model's own lengths)",
    )
    step.add_argument("--repeats", type=int, default=15, metavar="N", help="rounds (%(default)s)")
    step.add_argument(
        "--slow-every",
        type=int,
        default=5,
        metavar="N",
        help="per_instance_loop takes part in the first round and every so many after "
        "(%(default)s)",
    )
    step.add_argument(
        "--warm-up", type=int, default=2, metavar="N", help="updates before (%(default)s)"
    )
    step.add_argument("--threads", type=int, default=0, metavar="N", help="0: all cores (0)")
    step.add_argument(
        "--size", default="default", help="default; tiny, narrow: see docs/launches.md"
    )
    step.add_argument(
        "--update-freq",
        type=int,
        default=1,
        metavar="N",
        help="micro-batches of an update, each of this shape (%(default)s)",
    )
    step.add_argument(
        "--seconds",
        type=int,
        default=0,
        metavar="N",
        help="of a model: no round begins after as many, but for the first (0: no limit)",
    )
    step.add_argument(
        "--profile", action="store_true", help="also how long the device waits for Python"
    )
    step.add_argument("--seed", type=int, default=1, metavar="N", help="(%(default)s)")
    step.add_argument("--device", default="", help="cpu or cuda (cuda if there is a GPU)")
    step.add_argument(
        "--precision", default="fp32", help="fp32, fp16, or on a GPU bf16 (%(default)s)"
    )
    step.add_argument(
        "--clock",
        default="elapsed",
        help="elapsed time, or processor time for one thread on a busy machine (%(default)s)",
    )
    step.add_argument("--json", action="store_true", help="one JSON object, not a table")
    step.add_argument("--check", action="store_true", help="exit with 1 if a limit is not kept")
    step.set_defaults(benchmark=_step)
    launches = benchmarks.add_parser(
        "launches",
        help=bench_launches.HELP,
        description="Operations, allocations and synchronizations of one update, counted.",
    )
    bench_launches.add_arguments(launches)
    launches.set_defaults(benchmark=bench_launches.run)
    show = benchmarks.add_parser(
        "show",
        help="records as a Markdown table",
        description="Records of deltasam bench step as a Markdown table.",
    )
    show.add_argument("records", type=Path, nargs="+", metavar="RECORD", help="made with --json")
    show.set_defaults(benchmark=_show)


def run(args: argparse.Namespace) -> int:
    """Run one benchmark; progress goes to standard error.

    Args:
        args: Of :func:`add_arguments`.

    Returns:
        Zero; with ``--check`` one if a limit is not kept.
    """
    status: int = args.benchmark(args)
    return status


def _show(args: argparse.Namespace) -> int:
    print(markdown_of(args.records))
    return 0


def _step(args: argparse.Namespace) -> int:
    # Read when torch is loaded: its profiler, which counts memory, is talkative.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    plan = plan_of(args)
    # Only now, because importing fairseq takes seconds.
    from deltasam_fairseq.benchmarks.record import record_of, surroundings  # noqa: PLC0415
    from deltasam_fairseq.benchmarks.step import measure  # noqa: PLC0415
    from deltasam_fairseq.benchmarks.table import table_of, verdict  # noqa: PLC0415

    around = surroundings()
    found = [measure(model, plan, _say) for model in plan.models]
    record = record_of(plan, found, around)
    print(json.dumps(record, indent=2) if args.json else table_of(record))
    failed = [check for check in record["checks"] if not check["passed"]]
    if args.check and not record["checks"]:
        _say("no limit was checked: none applies to methods, models and batches of this kind")
    if args.check and args.json:
        for check in failed:
            _say(verdict(check))
    return 1 if args.check and failed else 0


def plan_of(args: argparse.Namespace) -> Plan:
    """Turn arguments into what is run.

    Args:
        args: Of :func:`add_arguments`.

    Returns:
        The plan; making it refuses what cannot be run.
    """
    from deltasam_fairseq.benchmarks.methods import SUMS  # noqa: PLC0415
    from deltasam_fairseq.benchmarks.plan import BOTH, Plan  # noqa: PLC0415

    methods = tuple(args.methods.split(","))
    if args.regularizers:
        methods = tuple(m for m in methods if m != "per_instance_loop") + SUMS
    return Plan(
        models=BOTH if args.model == "both" else tuple(args.model.split(",")),
        methods=methods,
        repeats=args.repeats,
        slow_every=args.slow_every,
        warm_up=args.warm_up,
        threads=args.threads,
        size=args.size,
        sentences=args.sentences,
        tokens=args.tokens,
        update_freq=args.update_freq,
        seconds=args.seconds,
        profile=args.profile,
        seed=args.seed,
        device=args.device,
        precision=args.precision,
        clock=args.clock,
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
