"""Compare sentence weights with what they stand in for, on any model and data.

For every registered estimator, and for other probes of Eq. 5: does the weighted ascent
point where the exact per-instance gradient (Eq. 3) says, do the weights rank sentences as
a_i |grad l_i| does, and is the update's gradient that of Eq. 2? Each is a mean and a standard
deviation over batches, without dropout. docs/estimators.md says what the columns are.

deltasam analyse estimator-quality RUN
    a model of deltasam train
deltasam analyse estimator-quality --encoder FOLDER --mrpc train.tsv --tune 0
    a BERT folder with a new head
deltasam analyse estimator-quality --show RECORD …
    the tables of records
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from deltasam_fairseq.analysis.kept_record import read_record
from deltasam_fairseq.cli.options import whole_number
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.run_folder import RunFolder

HELP = "how well each estimator's weights do, against exact quantities"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the data and what is measured."""
    parser.add_argument(
        "run_dir", type=Path, nargs="?", metavar="RUN", help="folder of deltasam train"
    )
    parser.add_argument(
        "--encoder",
        type=Path,
        metavar="FOLDER",
        help="in place of RUN: a BERT: config.json, weights, vocab.txt or tokenizer.json; needs "
        "--mrpc",
    )
    parser.add_argument("--mrpc", type=Path, metavar="TSV", help="train.tsv of MRPC")
    parser.add_argument(
        "--tune",
        type=int,
        default=0,
        metavar="N",
        help="updates of Adam before, with --encoder (%(default)s)",
    )
    parser.add_argument(
        "--show", type=Path, nargs="+", metavar="RECORD", help="print the tables of records"
    )
    parser.add_argument("--split", default="train", help="of RUN's data (%(default)s)")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="where RUN's data folder is now, if it was moved"
    )
    parser.add_argument("--rho", default="0.01,0.02,0.05", metavar="A,B,…", help="(%(default)s)")
    parser.add_argument("--eta", type=float, default=1e-4, help="(%(default)s)")
    parser.add_argument(
        "--precision",
        choices=("float32", "float64"),
        default="float32",
        help="of model and gradients (%(default)s)",
    )
    parser.add_argument(
        "--probe-radius",
        type=float,
        default=0.5,
        metavar="R",
        help="length of r in the rows that do not take rho (%(default)s)",
    )
    for name, default, meaning in (
        ("batches", 8, "how many"),
        ("batch-size", 16, "sentences in a batch"),
        ("probe-count", 8, "directions that one of these rows averages"),
        ("threads", 2, "of one operator"),
    ):
        parser.add_argument(
            f"--{name}",
            type=whole_number,
            default=default,
            metavar="N",
            help=f"{meaning} (%(default)s)",
        )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=0.0, metavar="M", help="no further batch after (0: all)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, not a table")


def run(args: argparse.Namespace) -> None:
    """Measure, and print a table or a record.

    Args:
        args: Of :func:`add_arguments`.

    Raises:
        UserError: If there is no model, or more than one.
    """
    from deltasam_fairseq.analysis.estimator_quality_record import (  # noqa: PLC0415 - needs torch
        tables_of,
    )

    if args.show:
        print(tables_of([read_record(path, "estimator-quality") for path in args.show]))
        return
    if (args.run_dir is None) == (args.encoder is None):
        raise UserError("give a model: either RUN or --encoder FOLDER --mrpc TSV")
    if args.encoder and not args.mrpc:
        raise UserError("--encoder needs sentences: --mrpc TSV")
    record = _measured(args)
    print(json.dumps(record, indent=2, ensure_ascii=False) if args.json else tables_of([record]))


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    import torch  # noqa: PLC0415

    from deltasam_fairseq.analysis.estimator_quality import measure  # noqa: PLC0415
    from deltasam_fairseq.analysis.estimator_quality_record import (  # noqa: PLC0415
        Settings,
        record_of,
    )
    from deltasam_fairseq.analysis.estimator_quality_weights import Probes  # noqa: PLC0415
    from deltasam_fairseq.benchmarks.record import surroundings  # noqa: PLC0415

    try:
        radii = tuple(float(radius) for radius in args.rho.split(","))
    except ValueError:
        raise UserError(f"--rho must be numbers with commas between, got {args.rho!r}") from None
    names = (
        *("eta", "batches", "batch_size", "precision", "probe_radius", "probe_count"),
        *("seed", "threads", "minutes"),
    )
    settings = Settings(rho=radii, **{name: getattr(args, name) for name in names})
    around = surroundings()
    torch.set_num_threads(settings.threads)
    subject, source = _subject(args, getattr(torch, settings.precision))
    began = time.monotonic()

    def more(number: int) -> bool:
        passed = time.monotonic() - began
        return not settings.minutes or passed * (number + 1) / number < 60 * settings.minutes

    found = measure(
        subject,
        radii=settings.rho,
        eta=settings.eta,
        seed=settings.seed,
        probes=Probes(settings.probe_radius, settings.probe_count),
        more=more,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    return record_of(subject, found, settings, command=settings.command(source), around=around)


def _subject(args: argparse.Namespace, dtype: Any) -> tuple[Any, str]:
    from deltasam_fairseq.analysis import estimator_quality_subject as subjects  # noqa: PLC0415

    if args.encoder:
        from deltasam_fairseq.analysis.probe_precision_load import pretrained  # noqa: PLC0415

        probed = pretrained(
            args.encoder,
            args.mrpc,
            batches=args.batches,
            sentences=args.batch_size,
            tune=args.tune,
            seed=args.seed,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
        name = args.encoder.absolute().name
        source = f"--encoder {name} --mrpc {args.mrpc.name} --tune {args.tune}"
        return subjects.of_pairs(probed, dtype), source
    folder = RunFolder(args.run_dir)
    data = (args.data or Path(folder.record()["data"])) / "bin"
    if not folder.best_checkpoint.is_file():
        raise UserError(f"{folder.best_checkpoint}: no such file; train first")
    if not data.is_dir():
        raise UserError(f"{data}: no such folder; say where the data is now with --data DIR")
    subject = subjects.of_checkpoint(
        data,
        folder.best_checkpoint,
        args.split,
        batches=args.batches,
        size=args.batch_size,
        seed=args.seed,
        dtype=dtype,
    )
    return subject, f"{folder.path.name} --split {args.split}"
