"""Write a trained model as a folder that Hugging Face's libraries load.

deltasam export RUN --out DIR
deltasam export --checkpoint FILE --vocabulary DIR --out DIR

A classifier is loaded with AutoModelForSequenceClassification, a BART with AutoModelForSeq2SeqLM,
a model of the recipe mirror with SentenceTransformer. Logits and embeddings are those of fairseq.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from deltasam_fairseq.cli.options import add_out
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.catalogue import recipe_of
from deltasam_fairseq.recipes.evaluation import DECODE_BOS
from deltasam_fairseq.recipes.run_folder import RunFolder

HELP = "a trained model, as a folder of Hugging Face or sentence-transformers"

_FACTS = ("recipe", "recipe_version", "method", "seed", "model")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add run or checkpoint, what belongs to it, and where the folder goes."""
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN", nargs="?", help="folder of deltasam train"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="best or last of the run, or a file, which fairseq-train may have written; default: "
        "the one that deltasam evaluate takes",
    )
    parser.add_argument(
        "--vocabulary",
        type=Path,
        metavar="DIR",
        help="made by deltasam prepare encoder, or with encoder.json, vocab.bpe and dict.txt; "
        "default: the run's",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="if the run's data folder was moved; for a file: its binary data, which name the "
        "classes",
    )
    parser.add_argument(
        "--decode-bos",
        default="train_consistent",
        choices=tuple(DECODE_BOS),
        help="a BART: whether it meets <s>, as for deltasam evaluate (%(default)s)",
    )
    add_out(parser, "the folder to make")
    parser.add_argument("--force", action="store_true", help="replace an export that is there")


def run(args: argparse.Namespace) -> int:
    """Export a run's checkpoint, or any."""
    request = _of_checkpoint(args) if args.run_dir is None else _of_run(args)
    # Imports torch, which the listing of verbs can do without.
    module = importlib.import_module("deltasam_fairseq.conversion.export")
    bos = args.decode_bos == "hub"
    module.export(args.out, module.ExportRequest(bos=bos, **request), force=args.force)
    return 0


def _of_checkpoint(args: argparse.Namespace) -> dict[str, Any]:
    if args.checkpoint in {None, "best", "last"}:
        raise UserError("give RUN, the folder of a run, or --checkpoint FILE")
    if args.vocabulary is None:
        raise UserError(
            f"--checkpoint {args.checkpoint} needs --vocabulary DIR: the folder that deltasam "
            "prepare encoder made, or for a RoBERTa or BART one with encoder.json, vocab.bpe and "
            "dict.txt"
        )
    return {
        "checkpoint": Path(args.checkpoint),
        "vocabulary": args.vocabulary,
        "data": args.data,
    }


def _of_run(args: argparse.Namespace) -> dict[str, Any]:
    folder = RunFolder(args.run_dir)
    record = folder.record()
    recipe = recipe_of(record, args.recipe_file)
    if args.checkpoint is None and not record.get("finished"):
        raise UserError(
            f"{folder.path} has not finished its training; go on with it (deltasam train … "
            "--resume), or say which checkpoint to export: --checkpoint best or --checkpoint last"
        )
    chosen = {
        None: recipe.kind.trained(folder),
        "best": folder.best_checkpoint,
        "last": folder.last_checkpoint,
    }
    request: dict[str, Any] = {
        "checkpoint": chosen.get(args.checkpoint) or Path(args.checkpoint),
        "generation": recipe.generation,
        "facts": {name: record.get(name) for name in _FACTS},
    }
    encoder, task = record.get("encoder"), recipe.kind.task
    if task is not None or encoder is None:
        data = recipe.kind.load_trained(folder, args.data)
        request |= {"data": data.binary, "vocabulary": data.path / "gpt2"}
        if task is not None:
            request |= {
                "labels": task.classes,
                "longest": data.facts["settings"]["max_tokens"],
                "label_scale": task.label_scale,
            }
    if encoder is not None:
        request |= {"vocabulary": Path(encoder["path"]), "dict_sha256": encoder["dict_sha256"]}
    if args.vocabulary is not None:
        request["vocabulary"] = args.vocabulary
    return request
