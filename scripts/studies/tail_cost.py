"""What does a whole run cost that perturbs in its last share alone?

Two trainers, of ``none`` and of ``per_instance --sam-tail f``, take turns on the batches of a run,
so that both have the same machine. A run's start, validation and checkpoints are not counted:
they are the same for both. The answer is in docs/axis.md.

    python -m scripts.studies.tail_cost --data DIR --json > RECORD
    python -m scripts.studies.tail_cost --show RECORD

DIR is made by ``deltasam prepare glue/TASK``, of a task with two classes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from deltasam_fairseq.benchmarks.instruments import no_collection, timed
from deltasam_fairseq.benchmarks.trainers import build_trainer, flags_of, quiet, size_of, update
from deltasam_fairseq.benchmarks.variants import CLOCKS, VARIANTS
from deltasam_fairseq.benchmarks.workloads import WORKLOADS
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.markdown import markdown_lines
from scripts.studies.shared import Record, add_counts, number, run, say, study_parser

CPU = torch.device("cpu")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run both, update by update."""
    if args.data is None:
        raise UserError("give the data: --data DIR")
    if not (args.data / "bin").is_dir():
        raise UserError(f"--data {args.data} has no folder bin: make it with deltasam prepare")
    torch.set_num_threads(args.threads)
    workload = WORKLOADS["minilm"][args.size].ordered(sentences=args.batch_size)
    schedule = f"--lr-scheduler polynomial_decay --total-num-update {args.updates}"
    variants = {
        "none": "none",
        "tail": f"{VARIANTS['per_instance'].flags} --sam-tail {args.tail:g}",
    }
    flags = {
        name: [
            *flags_of(workload, own, args.seed, CPU),
            *f"{schedule} --max-update {args.updates}".split(),
        ]
        for name, own in variants.items()
    }
    with quiet():
        trainers = {name: build_trainer(args.data / "bin", own) for name, own in flags.items()}
        task = trainers["none"].task
        epoch = task.get_batch_iterator(
            task.dataset("train"),
            max_sentences=args.batch_size,
            required_batch_size_multiple=1,
            seed=args.seed,
        ).next_epoch_itr()
        batches = list(islice(epoch, args.updates))
        if len(batches) < args.updates:
            raise UserError(
                f"--updates {args.updates}: an epoch of {args.data} has {len(batches)} batches"
            )
        found: dict[str, dict[str, list[float]]] = {
            clock: {name: [] for name in trainers} for clock in CLOCKS
        }
        with no_collection():
            for done, batch in enumerate(batches, 1):
                for name, trainer in trainers.items():
                    times, _ = timed(partial(update, trainer, [batch]), CPU)
                    for clock, seconds in times._asdict().items():
                        found[clock][name].append(float(f"{seconds:.6g}"))
                if done % 10 == 0:
                    say(f"{done} of {args.updates} updates")
    made = {name: trainer.get_num_updates() for name, trainer in trainers.items()}
    return {
        "method_flags": variants,
        "flags": " ".join(flags["none"]),
        "text": args.data.parent.name,
        "size": size_of(batches),
        "made": made,
        "seconds": found,
    }


def parts(record: Record) -> dict[str, Mapping[str, float]]:
    """Add the updates before the tail, in it, and all of them up.

    Returns:
        By part, ``updates``, seconds of ``none`` and of ``tail``, and their ``ratio``.
    """
    settings = record["settings"]
    seconds = record["seconds"][settings["clock"]]
    updates = settings["updates"]
    begin = updates - math.ceil(round(settings["tail"] * updates, 6))
    spans = {
        "before it": slice(0, begin),
        "the tail": slice(begin, None),
        "whole run": slice(0, None),
    }
    found: dict[str, Mapping[str, float]] = {}
    for part, span in spans.items():
        none, tail = (sum(seconds[name][span]) for name in ("none", "tail"))
        count = len(seconds["none"][span])
        found[part] = {"updates": count, "none": none, "tail": tail, "ratio": tail / none}
    return found


def tables(records: Sequence[Record]) -> str:
    """Lay records out, one table each."""
    return "\n\n".join(_table(record) for record in records)


def _table(record: Record) -> str:
    settings = record["settings"]
    head = ("", "updates", "`none`", f"`per_instance --sam-tail {settings['tail']:g}`", "× none")
    rows = [
        (
            part,
            str(found["updates"]),
            f"{found['none']:.1f} s",
            f"{found['tail']:.1f} s",
            f"{found['ratio']:.2f}",
        )
        for part, found in parts(record).items()
    ]
    caption = (
        f"MiniLM on {record['text']}, batches of {settings['batch_size']}, {settings['clock']} "
        f"time. {record['hardware']['processor']}, torch {record['versions']['torch']}, seed "
        f"{settings['seed']}."
    )
    rule = ("---", *("--:" for _ in head[1:]))
    return "\n".join([caption, "", *markdown_lines(head, rule, rows)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study."""
    parser = study_parser("tail_cost", __doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared for MiniLM")
    parser.add_argument(
        "--size", choices=("default", "tiny"), default="default", help="of MiniLM (%(default)s)"
    )
    share = number(float, 0, above=True)
    parser.add_argument("--tail", type=share, default=0.25, metavar="F", help="(%(default)s)")
    counts = (
        ("updates", 2, 60, "of the run"),
        ("batch-size", 1, 16, "sentences in a batch"),
        ("threads", 1, 1, "of one operator"),
        ("seed", 0, 1, "of weights, masks and the order of the sentences"),
    )
    add_counts(parser, counts)
    parser.add_argument("--clock", choices=CLOCKS, default="processor", help="(%(default)s)")
    run("tail_cost", parser, measure, tables, arguments)


if __name__ == "__main__":
    main()
