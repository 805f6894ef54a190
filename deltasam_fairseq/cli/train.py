"""Train a recipe with fairseq-train and the delta_sam optimizer.

Any further flag goes to fairseq-train and replaces the recipe's:

    deltasam train docstrings --data DIR --save-dir RUN --method sam --sam-rho 0.1
    deltasam train cnndm --data DIR --bart DIR --save-dir RUN --gpus 8 --slurm
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from deltasam_fairseq.cli.options import whole_number
from deltasam_fairseq.data.bart import PreparedBart
from deltasam_fairseq.data.prepared import PreparedData
from deltasam_fairseq.recipes.base import METHODS, PRECISIONS
from deltasam_fairseq.recipes.catalogue import RECIPES
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.training import DEFAULT_METHOD, DEFAULT_SEED, TrainRequest, train

HELP = "train a recipe with fairseq-train"
#: Unknown arguments are no error but ``args.extra``: they are fairseq's.
PASSES_ON = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add recipe, data, folder, method and what to do with an earlier run."""
    parser.add_argument("recipe", help="see: deltasam recipes")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="made by deltasam prepare"
    )
    parser.add_argument(
        "--save-dir", type=Path, required=True, metavar="RUN", help="folder of the run"
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        help=f"how the weights are perturbed; {DEFAULT_METHOD}, or the run's own with --resume",
    )
    parser.add_argument(
        "--seed",
        type=whole_number,
        metavar="N",
        help=f"{DEFAULT_SEED}, or the run's own with --resume",
    )
    parser.add_argument(
        "--bart", type=Path, metavar="DIR", help="what to fine-tune, made by deltasam prepare bart"
    )
    parser.add_argument(
        "--gpus",
        type=whole_number,
        metavar="N",
        help="GPUs of one machine; recipes with a fixed number of tokens per update adapt "
        "--update-freq (they take 1 if it is not given)",
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="default: the recipe's, or the run's with --resume"
    )
    parser.add_argument(
        "--slurm", action="store_true", help="start it with srun; see docs/cnndm.md"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the fairseq-train command and stop"
    )
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument("--resume", action="store_true", help="continue the run that is in RUN")
    earlier.add_argument(
        "--restart", action="store_true", help="move the run that is in RUN aside and start over"
    )


def run(args: argparse.Namespace) -> int:
    """Train, or print the command.

    Args:
        args: Of :func:`add_arguments`, and ``extra``.

    Returns:
        Zero.
    """
    request = TrainRequest(
        recipe=RECIPES.get(args.recipe),
        data=PreparedData.load(args.data),
        run=RunFolder(args.save_dir),
        method=args.method,
        seed=args.seed,
        overrides=args.extra,
        bart=PreparedBart.load(args.bart) if args.bart else None,
        gpus=args.gpus,
        precision=args.precision,
        slurm=args.slurm,
    )
    if args.dry_run:
        print(shlex.join(request.command(resume=args.resume)))
    else:
        train(request, resume=args.resume, restart=args.restart)
    return 0
