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

from deltasam_fairseq.cli.options import add_settings, values_of
from deltasam_fairseq.recipes.catalogue import find_recipe
from deltasam_fairseq.recipes.kinds.base import FolderOptions
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.training import DEFAULT_METHOD, DEFAULT_SEED, TrainRequest, train

HELP = "train a recipe with fairseq-train"
#: Unknown arguments are no error but ``args.extra``: they are fairseq's.
PASSES_ON = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add recipe, folders, method and what to do with an earlier run."""
    parser.add_argument("recipe", help="see: deltasam recipes")
    add_settings(parser, FolderOptions)
    add_settings(parser, TrainRequest)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the fairseq-train command and stop"
    )
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument("--resume", action="store_true", help="continue the run that is in RUN")
    earlier.add_argument(
        "--restart", action="store_true", help="move the run that is in RUN aside and start over"
    )


def run(args: argparse.Namespace) -> int:
    """Train, or print the command; after Ctrl-C, say which command goes on.

    Returns:
        Zero.

    Raises:
        KeyboardInterrupt: With that command.
    """
    recipe = find_recipe(args.recipe)
    method = recipe.method(args.method or DEFAULT_METHOD)
    found = recipe.kind.open(
        recipe,
        FolderOptions(**values_of(FolderOptions, args)),
        name=f"{method.name}-seed{args.seed or DEFAULT_SEED}",
        resume=args.resume,
        dry_run=args.dry_run,
    )
    request = TrainRequest(
        recipe,
        found.data,
        found.run,
        overrides=args.extra,
        checkpoint=found.checkpoint,
        model=found.model,
        recipe_file=args.recipe_file,
        **values_of(TrainRequest, args),
    )
    if args.dry_run:
        # The command can be read before there is anything to run it on.
        print(shlex.join(request.command(resume=args.resume, check=bool(found.data.facts))))
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
