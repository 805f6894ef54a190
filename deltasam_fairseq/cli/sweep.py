"""Run a recipe with several methods, seeds and hyperparameters; one record for each run.

    deltasam sweep glue/rte --model minilm_l6 --methods none,sam --seeds 1-5 --grid rho=0.02,0.05

Called again, it skips finished runs and goes on with one that was broken off; several
calls at once share the runs. Any further flag goes to fairseq-train and replaces the recipe's,
for every method. The records are in OUT/records; deltasam table 1, 4, 6 and significance read
them. --export DIR copies those of finished runs to DIR/RECIPE/MODEL, whole without the runs and
without the paths of this machine.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from deltasam_fairseq.choices import PRECISIONS
from deltasam_fairseq.cli.options import positive_number, whole_number
from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.catalogue import find_recipe
from deltasam_fairseq.recipes.command import flag_values
from deltasam_fairseq.recipes.default_folders import data_folder, encoder_folder, sweep_folder
from deltasam_fairseq.recipes.methods import PARTS
from deltasam_fairseq.recipes.slurm_array import array_script, submit
from deltasam_fairseq.recipes.sweep import Sweep, run_sweep
from deltasam_fairseq.recipes.sweep_folder import SweepFolder
from deltasam_fairseq.recipes.sweep_plan import SHORT, Cell, plan, read_grid, read_seeds
from deltasam_fairseq.recipes.sweep_record import export_records

HELP = "run a recipe over methods, seeds and a grid"
#: Unknown arguments are no error but ``args.extra``: they are fairseq's.
PASSES_ON = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add recipe, model, what to vary and how to run."""
    parser.add_argument("recipe", help="see: deltasam recipes")
    parser.add_argument("--model", required=True, help="see: deltasam recipes RECIPE")
    parser.add_argument(
        "--methods",
        default="none,sam,delta_sam",
        help=f"of {', '.join(PARTS)}, and sums of different kinds such as sam+r3f; separated by "
        "commas (%(default)s)",
    )
    parser.add_argument("--seeds", default="1-5", help="as in 1-5 or 1,2,7 (%(default)s)")
    parser.add_argument(
        "--grid",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUES",
        help=f"of {', '.join(SHORT)} and flags of fairseq, as in rho=0.01,0.02; default: the "
        "recipe's values alone",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: sweeps/RECIPE/MODEL")
    parser.add_argument("--data", type=Path, metavar="DIR", help="default: data/RECIPE/MODEL")
    parser.add_argument("--encoder", type=Path, metavar="DIR", help="default: models/MODEL")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: the recipe's")
    parser.add_argument("--gpus", type=whole_number, metavar="N", help="GPUs of one run")
    parser.add_argument(
        "--adversarial-risk",
        type=positive_number,
        metavar="RHO",
        help="measure Eq. 2 at this radius as well; the paper's is 0.05",
    )
    parser.add_argument("--discard-checkpoints", action="store_true", help="keep the records alone")
    parser.add_argument("--list", action="store_true", help="list the runs and their state")
    parser.add_argument("--cell", type=whole_number, metavar="N", help="run the n-th alone")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the command of every run and stop"
    )
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="copy the records to keep them, and stop"
    )
    parser.add_argument("--slurm", action="store_true", help="hand the runs to sbatch, as an array")


def run(args: argparse.Namespace) -> int:
    """Return 1 if a run failed; run the sweep, show it, copy its records, or hand it to SLURM.

    Raises:
        UserError: If there is no run of that number.
        KeyboardInterrupt: After Ctrl-C, with how to go on.
    """
    recipe = find_recipe(args.recipe)
    seeds, grid = read_seeds(args.seeds), read_grid(args.grid)
    cells = plan(args.methods.split(","), seeds, grid, recipe.all_parts)
    if not recipe.kind.is_swept:
        raise UserError(
            f"the recipe {recipe.name} is no task on sentences; sweeps run those: "
            "train it with deltasam train, once per method and seed"
        )
    recipe.model(args.model)
    folder = SweepFolder(args.out or sweep_folder(recipe.name, args.model))
    if args.list:
        _list(folder, cells)
        return 0
    if args.export:
        out = SweepFolder(args.export / recipe.name / args.model)
        count = export_records(recipe.kind.task, folder, out, data=args.data)
        print(f"{out.path}: {count} records")
        return 0
    if args.cell is not None and args.slurm:
        raise UserError("--slurm makes one job of an array of each run; leave --cell out")
    if args.cell is not None:
        if args.cell > len(cells):
            raise UserError(f"--cell {args.cell}: there are {len(cells)} runs")
        cells = [cells[args.cell - 1]]
    data = args.data or data_folder(recipe.name, args.model)
    encoder = args.encoder or encoder_folder(args.model)
    corpus = recipe.kind.corpus
    sweep = Sweep(
        recipe=recipe,
        # Commands can be read before there is anything to run them on.
        data=corpus(data, {}) if args.dry_run else corpus.load(data),
        model=args.model,
        encoder=PreparedEncoder(encoder, {}) if args.dry_run else PreparedEncoder.load(encoder),
        folder=folder,
        overrides=args.extra,
        precision=args.precision,
        gpus=args.gpus,
        risk=args.adversarial_risk,
        keep=not args.discard_checkpoints,
        recipe_file=args.recipe_file,
    )
    if args.dry_run:
        for cell in cells:
            print(f"# {cell.name}\n{shlex.join(sweep.request(cell).command(check=False))}")
        return 0
    if args.slurm:
        typed = [argument for argument in args.typed if argument != "--slurm"]
        own_call = [sys.executable, "-m", "deltasam_fairseq.cli", *typed]
        on_cpu = "cpu" in flag_values(sweep.request(cells[0]).command(check=False))
        gpus = 0 if on_cpu else args.gpus or 1
        print(submit(array_script(own_call, len(cells), folder.path, gpus=gpus), folder.path))
        return 0
    try:
        outcome = run_sweep(sweep, cells)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command keeps what is finished and goes on") from None
    print(f"{folder.path}: {len(cells)} runs: {outcome.summary()}")
    return 1 if outcome.failed else 0


def _list(folder: SweepFolder, cells: list[Cell]) -> None:
    width = max(len(cell.name) for cell in cells)
    for cell in cells:
        record = folder.record(cell.name)
        state = "finished" if record else "begun" if folder.cell(cell.name).exists() else "not run"
        print(f"{cell.name:{width}}  {state}")
