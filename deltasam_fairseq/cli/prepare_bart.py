"""Check a BART model and write it as the checkpoint that deltasam train --bart starts from.

Takes model.pt of fairseq's bart.large or bart.base, a folder of Hugging Face
with config.json and weights, or, to try things out, random weights.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from deltasam_fairseq.cli.options import add_gpt2_files, add_number, add_out, gpt2_file
from deltasam_fairseq.data.bart import ARCHITECTURES

HELP = "a BART model, from fairseq or Hugging Face"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the model is from and where it goes."""
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("checkpoint", type=Path, nargs="?", help="model.pt, or a folder")
    model.add_argument(
        "--random",
        choices=tuple(ARCHITECTURES),
        help="random weights of that size instead; a model to test with, not to fine-tune",
    )
    add_number(parser, "--seed", 1, "of random weights")
    add_gpt2_files(parser, "encoder.json", "dict.txt")
    add_out(parser, "the folder to make")
    parser.add_argument("--force", action="store_true", help="replace the folder that is there")


def run(args: argparse.Namespace) -> None:
    """Convert the model."""
    # Imports torch, which the listing of verbs and kinds can do without.
    module = importlib.import_module("deltasam_fairseq.conversion.prepare_bart")
    has_encoder = args.encoder_json or args.gpt2
    request = module.BartRequest(
        dictionary=gpt2_file(args, "dict.txt"),
        source=args.checkpoint,
        random=args.random,
        seed=args.seed,
        encoder_json=gpt2_file(args, "encoder.json") if has_encoder else None,
    )
    module.prepare_bart(args.out, request, force=args.force)
