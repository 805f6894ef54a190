"""Clean, count, encode and binarize CNN/DailyMail for BART.

From the official stories (cnn/stories, dailymail/stories and the lists of
addresses), or from aligned files with one article and one summary per line.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from deltasam_fairseq.cli.options import (
    add_gpt2_files,
    add_number,
    add_text_files,
    both_files,
    gpt2_file,
)
from deltasam_fairseq.data.cnndm import CnndmOptions, cnndm_origin
from deltasam_fairseq.data.gpt2 import Gpt2Bpe
from deltasam_fairseq.data.pipeline import prepare
from deltasam_fairseq.data.stories import StoryFiles
from deltasam_fairseq.data.text_origin import TextFiles
from deltasam_fairseq.errors import UserError

HELP = "CNN/DailyMail for BART, from stories or aligned files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two kinds of input, the vocabulary and what to do with odd data."""
    parser.add_argument(
        "--stories", type=Path, nargs="+", metavar="DIR", help="folders of .story files"
    )
    parser.add_argument(
        "--url-lists",
        type=Path,
        metavar="DIR",
        help="holds all_train.txt, all_val.txt and all_test.txt; without it the folder of "
        "--stories holds train, valid and test",
    )
    add_text_files(parser, required=False)
    add_gpt2_files(parser, "encoder.json", "vocab.bpe", "dict.txt")
    parser.add_argument(
        "--other-vocabulary",
        action="store_true",
        help="take files that are not GPT-2's and BART's own",
    )
    parser.add_argument(
        "--keep-bylines", action="store_true", help="leave '(CNN) --' where articles begin with it"
    )
    parser.add_argument(
        "--strict-counts",
        action="store_true",
        help="stop if there are not 287,113, 13,368 and 11,490 pairs",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the data folder to make"
    )
    text = "processes; the result does not depend on it"
    add_number(parser, "--workers", os.cpu_count() or 1, text)
    parser.add_argument(
        "--force",
        action="store_true",
        help="make it anew in any case, in the place of what is there",
    )


def run(args: argparse.Namespace) -> None:
    """Prepare the folder.

    Args:
        args: Of :func:`add_arguments`.
    """
    bpe = Gpt2Bpe(
        encoder_json=gpt2_file(args, "encoder.json"),
        vocab_bpe=gpt2_file(args, "vocab.bpe"),
        dict_txt=gpt2_file(args, "dict.txt"),
    )
    if not args.other_vocabulary:
        bpe.require_known()
    options = CnndmOptions(
        keep_bylines=args.keep_bylines,
        strict=args.strict_counts,
        held_out=args.hold_out,
        workers=args.workers,
    )
    origin = cnndm_origin(_files(args), options)
    prepare(args.out, origin, bpe, workers=args.workers, force=args.force)


def _files(args: argparse.Namespace) -> StoryFiles | TextFiles:
    train = both_files(args, "train")
    if (train is None) == (args.stories is None):
        raise UserError(
            "give either the stories, with --stories DIR … --url-lists DIR, or aligned files, with "
            "--train-source FILE --train-target FILE and so on"
        )
    if train is None:
        return StoryFiles(tuple(args.stories), args.url_lists)
    return TextFiles(train, both_files(args, "valid"), both_files(args, "test"))
