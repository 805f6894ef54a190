"""Clean, count, encode and binarize CNN/DailyMail for BART.

From the official stories (cnn/stories, dailymail/stories and the lists of
addresses), or from aligned files with one article and one summary per line.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deltasam_fairseq.cli.options import (
    add_gpt2_files,
    add_out,
    add_settings,
    add_text_files,
    add_workers,
    gpt2_file,
    text_files,
    values_of,
)
from deltasam_fairseq.data.cnndm import CnndmOptions, cnndm_origin
from deltasam_fairseq.data.gpt2 import Gpt2Bpe
from deltasam_fairseq.data.stories import StoryFiles
from deltasam_fairseq.data.text_pairs import TextFiles, prepare_pairs
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
    add_settings(parser, CnndmOptions)
    add_out(parser)
    add_workers(parser)


def run(args: argparse.Namespace) -> None:
    """Prepare the folder."""
    bpe = Gpt2Bpe(
        encoder_json=gpt2_file(args, "encoder.json"),
        vocab_bpe=gpt2_file(args, "vocab.bpe"),
        dict_txt=gpt2_file(args, "dict.txt"),
    )
    if not args.other_vocabulary:
        bpe.require_known()
    options = CnndmOptions(
        **values_of(CnndmOptions, args), held_out=args.hold_out, workers=args.workers
    )
    origin = cnndm_origin(_files(args), options)
    prepare_pairs(args.out, origin, bpe, workers=args.workers, force=args.force)


def _files(args: argparse.Namespace) -> StoryFiles | TextFiles:
    texts = text_files(args)
    if texts is not None and args.stories is None:
        return texts
    if texts is not None or args.stories is None:
        raise UserError(
            "give either the stories, with --stories DIR … --url-lists DIR, or aligned files, with "
            "--train-source FILE --train-target FILE and so on"
        )
    return StoryFiles(tuple(args.stories), args.url_lists)
