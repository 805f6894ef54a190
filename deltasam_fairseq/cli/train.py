"""Train a recipe with fairseq-train and the delta_sam optimizer.

Any further flag goes to fairseq-train and replaces the recipe's:

    deltasam train text --data DIR --save-dir RUN --method sam --sam-rho 0.1
    deltasam train cnndm --data DIR --bart DIR --save-dir RUN --gpus 8 --slurm
    deltasam train glue/rte --model roberta_large --method delta_sam --seed 1

Recipes with a choice of models find their folders themselves: data/RECIPE/MODEL, models/MODEL
and, for the run, runs/RECIPE/MODEL/METHOD-seedN.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltasam_fairseq.cli.options import whole_number
from deltasam_fairseq.data.bart import PreparedBart
from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.data.prepared import PreparedData
from deltasam_fairseq.data.prepared_sentences import PreparedSentences
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.base import CONTROLS, METHODS, PRECISIONS, Recipe
from deltasam_fairseq.recipes.catalogue import find_recipe
from deltasam_fairseq.recipes.places import data_folder, encoder_folder, run_folder
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.training import DEFAULT_METHOD, DEFAULT_SEED, TrainRequest, train

HELP = "train a recipe with fairseq-train"
#: Unknown arguments are no error but ``args.extra``: they are fairseq's.
PASSES_ON = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add recipe, data, folder, method and what to do with an earlier run."""
    parser.add_argument("recipe", help="see: deltasam recipes")
    parser.add_argument("--data", type=Path, metavar="DIR", help="made by deltasam prepare")
    parser.add_argument("--save-dir", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--model", metavar="MODEL", help="see: deltasam recipes RECIPE")
    parser.add_argument(
        "--encoder",
        type=Path,
        metavar="DIR",
        help="what to fine-tune, made by deltasam prepare encoder; default: models/MODEL",
    )
    parser.add_argument(
        "--method",
        choices=(*METHODS, *CONTROLS),
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

    Raises:
        KeyboardInterrupt: After Ctrl-C, with the command that goes on.
    """
    recipe = find_recipe(args.recipe)
    request = _sentences(recipe, args) if recipe.models else _texts(recipe, args)
    if args.dry_run:
        # The command can be read before there is anything to run it on.
        there = not recipe.models or "rows" in request.data.facts
        print(shlex.join(request.command(resume=args.resume, check=there)))
    else:
        try:
            train(request, resume=args.resume, restart=args.restart)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_way_on(request.run, args.typed)) from None
    return 0


def _way_on(run: RunFolder, typed: Sequence[str]) -> str:
    command = ["deltasam", *(word for word in typed if word not in ("--resume", "--restart"))]
    if run.can_go_on():
        return f"go on from its last checkpoint with: {shlex.join([*command, '--resume'])}"
    again = ["--restart"] if run.has_checkpoints() else []
    return f"no checkpoint to go on from is saved; start over with: {shlex.join(command + again)}"


def _texts(recipe: Recipe, args: argparse.Namespace) -> TrainRequest:
    if args.data is None or args.save_dir is None:
        raise UserError(f"the recipe {recipe.name} needs --data DIR and --save-dir RUN")
    if args.model or args.encoder:
        raise UserError(f"the recipe {recipe.name} has no choice of models; leave --model out")
    return TrainRequest(
        recipe=recipe,
        data=PreparedData.load(args.data),
        run=RunFolder(args.save_dir),
        bart=PreparedBart.load(args.bart) if args.bart else None,
        **_common(args),
    )


def _sentences(recipe: Recipe, args: argparse.Namespace) -> TrainRequest:
    model = args.model
    if model is None and args.resume and args.save_dir is not None:
        model = RunFolder(args.save_dir).record()["model"]
    if model is None:
        raise UserError(
            f"the recipe {recipe.name} fits several models: give --model, one of "
            f"{', '.join(recipe.models)}"
        )
    recipe.model(model)
    method, seed = args.method or DEFAULT_METHOD, args.seed or DEFAULT_SEED
    data = args.data or data_folder(recipe.name, model)
    encoder = args.encoder or encoder_folder(model)
    load = not args.dry_run or (data.is_dir() and encoder.is_dir())
    return TrainRequest(
        recipe=recipe,
        data=PreparedSentences.load(data) if load else PreparedSentences(data, {}),
        run=RunFolder(args.save_dir or run_folder(recipe.name, model, method, seed)),
        model=model,
        encoder=PreparedEncoder.load(encoder) if load else PreparedEncoder(encoder, {}),
        **_common(args),
    )


def _common(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "recipe_file": args.recipe_file,
        "method": args.method,
        "seed": args.seed,
        "overrides": args.extra,
        "gpus": args.gpus,
        "precision": args.precision,
        "slurm": args.slurm,
    }
