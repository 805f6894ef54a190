"""Check a BERT or RoBERTa and write it as what deltasam train --encoder starts from.

Takes a folder of Hugging Face with config.json, weights and, of a BERT, vocab.txt
or tokenizer.json, or model.pt of fairseq's roberta.large or roberta.base.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from deltasam_fairseq.cli.options import add_out

HELP = "a BERT or RoBERTa, from Hugging Face or fairseq"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the model is from and where it goes."""
    parser.add_argument("checkpoint", type=Path, help="a folder, or model.pt of a RoBERTa")
    parser.add_argument(
        "--gpt2",
        type=Path,
        metavar="DIR",
        help="for a RoBERTa: holds encoder.json, vocab.bpe and dict.txt",
    )
    casing = parser.add_mutually_exclusive_group()
    casing.add_argument(
        "--lower-case",
        action="store_const",
        const=True,
        dest="lowercase",
        help="a BERT whose text is lower-cased, whatever its files say",
    )
    casing.add_argument(
        "--cased",
        action="store_const",
        const=False,
        dest="lowercase",
        help="a BERT whose text keeps its capitals, whatever its files say",
    )
    parser.add_argument(
        "--new-head",
        action="store_true",
        help="leave out the head, also where its labels are the classes of a task of GLUE",
    )
    add_out(parser, "the folder to make: models/MODEL")
    parser.add_argument("--force", action="store_true", help="replace the folder that is there")


def run(args: argparse.Namespace) -> None:
    """Convert the model."""
    # Imports torch, which the listing of verbs and kinds can do without.
    module = importlib.import_module("deltasam_fairseq.conversion.prepare_encoder")
    request = module.EncoderRequest(
        args.checkpoint, args.gpt2, lowercase=args.lowercase, new_head=args.new_head
    )
    module.prepare_encoder(args.out, request, force=args.force)
