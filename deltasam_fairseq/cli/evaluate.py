"""Run a run's best checkpoint over a split and score it with the metric of its recipe.

Summaries: writes RUN/generate-SPLIT/{hypotheses,references}.txt and scores.json,
which also holds two baselines that need no training. Any further flag goes to
fairseq-generate and replaces the recipe's.

Tasks on sentences: writes RUN/predict-SPLIT/predictions.txt and scores.json with all
metrics of the task over the whole split; for a split without labels, the file that
GLUE's server takes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deltasam_fairseq.analysis.rouge_tables import run_table
from deltasam_fairseq.analysis.table import as_text
from deltasam_fairseq.cli.options import whole_number
from deltasam_fairseq.cli.parser import unrecognized
from deltasam_fairseq.data.prepared import PreparedData
from deltasam_fairseq.data.prepared_sentences import PreparedSentences
from deltasam_fairseq.data.sentence_task import SentenceTask
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.rouge import PROGRAMS, SPLITTERS, TOKENIZATIONS
from deltasam_fairseq.recipes.base import PRECISIONS
from deltasam_fairseq.recipes.catalogue import find_recipe
from deltasam_fairseq.recipes.classification import classify
from deltasam_fairseq.recipes.generation import DECODE_BOS, Decoding, generate
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.scoring import score_run

HELP = "decode a split with a run's best checkpoint and score it"
#: Unknown arguments are no error but ``args.extra``: they are fairseq's.
PASSES_ON = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add run, split and how to decode and score."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of deltasam train")
    parser.add_argument(
        "--split",
        choices=("test", "valid", "test1", "valid1"),
        help="default: test, and valid for tasks on sentences; test1 and valid1 are MNLI's second",
    )
    parser.add_argument("--cpu", action="store_true", help="tasks on sentences: leave a GPU alone")
    parser.add_argument("--beam", type=whole_number, metavar="N", help="default: the recipe's")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="where the data folder is now, if it was moved"
    )
    for flag, choices, text in (
        ("--sentence-split", SPLITTERS, "how ROUGE-Lsum tells sentences apart"),
        ("--tokenization", TOKENIZATIONS, "how ROUGE cuts sentences into words"),
        ("--like", PROGRAMS, "whose ROUGE"),
    ):
        parser.add_argument(flag, choices=tuple(choices), help=f"{text}; default: the recipe's")
    parser.add_argument(
        "--decode-bos",
        choices=tuple(DECODE_BOS),
        default="train_consistent",
        help="whether the model meets <s> as in training (not at all), or as in bart.sample of "
        "fairseq's hub: before the source and before the summary (%(default)s)",
    )
    parser.add_argument("--precision", choices=PRECISIONS, help="default: the recipe's")
    parser.add_argument(
        "--processes",
        type=whole_number,
        default=1,
        metavar="N",
        help="decode so many parts at a time, each on a GPU of its own if there are GPUs "
        "(%(default)s); the result does not depend on it",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace results of another checkpoint"
    )


def run(args: argparse.Namespace) -> int:
    """Decode, score and print a table.

    Args:
        args: Of :func:`add_arguments`, and ``extra``.

    Returns:
        Zero.
    """
    folder = RunFolder(args.run_dir)
    record = folder.record()
    file = args.recipe_file or record.get("recipe_file")
    recipe = find_recipe(record["recipe"], Path(file) if file else None)
    if recipe.sentences is not None:
        return _classify(recipe.sentences, folder, args)
    args.split = args.split or "test"
    data = PreparedData.load(args.data or Path(record["data"]))
    _require_same_data(data, folder)
    decoding = Decoding(
        overrides=[*(["--beam", str(args.beam)] if args.beam else []), *args.extra],
        decode_bos=args.decode_bos,
        precision=args.precision,
        processes=args.processes,
    )
    generated = generate(recipe, data, folder, args.split, decoding, force=args.force)
    given = {
        "split": args.sentence_split,
        "tokenization": args.tokenization,
        "like": args.like,
    }
    rouge = {**recipe.rouge, **{name: value for name, value in given.items() if value}}
    score_run(data, generated, args.split, rouge=rouge)
    print()
    print(as_text(run_table([folder.path], args.split)))
    return 0


def _classify(task: SentenceTask, folder: RunFolder, args: argparse.Namespace) -> int:
    if args.extra:
        raise UserError(unrecognized(args.extra, args.known_flags))
    record = folder.record()
    data = PreparedSentences.load(args.data or Path(record["data"]))
    _require_same_data(data, folder)
    found = classify(task, data, folder, args.split or "valid", cpu=args.cpu)
    if found.scores is None:
        print(f"{found.submission}: {len(found.predictions)} predictions, without labels to score")
        return 0
    for name in task.metrics:
        mark = "   the paper's" if name == task.metrics[0] else ""
        print(f"{name:9} {found.scores[name]:7.2f}{mark}")
    return 0


def _require_same_data(data: PreparedData | PreparedSentences, folder: RunFolder) -> None:
    if data.sha256 != folder.record()["data_sha256"]:
        raise UserError(
            f"{data.path} is not what {folder.path} was trained on: its content has changed; "
            "give the old one with --data, or train again"
        )
