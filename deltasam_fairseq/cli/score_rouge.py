"""ROUGE-1, -2, -L and -Lsum of one system, or of two and whether they differ.

A line of a file is one text. Where the text has several sentences, ROUGE-Lsum (what papers
call ROUGE-L) has to know where they end: mark the ends with <q> in the files, as PreSumm does
(another mark: --line-break), or let --split find them.

  newline      only at the marks; a line without marks is one sentence
  sentences    at white space after . ! or ?
  ptb          for PTB-tokenized text: after a word . ! or ? and the quotes and brackets behind it
  files2rouge  for PTB-tokenized text: at every " . ", as files2rouge does
  nltk         for raw text: NLTK's Punkt model (python -m nltk.downloader punkt_tab)

--like rouge-1.5.5 gives the numbers of the Perl program ROUGE-1.5.5 -n 2 -m (without -m:
--no-stemmer). It has one ROUGE-L, over sentences; rougeL and rougeLsum are both that.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from deltasam_fairseq.cli.options import whole_number
from deltasam_fairseq.data.aligned import read_lines
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.resampling import RESAMPLES, SEED, TRIALS, Resampling
from deltasam_fairseq.evaluation.rouge import (
    PROGRAMS,
    SPLITTERS,
    TOKENIZATIONS,
    RougeReport,
    rouge_scores,
)
from deltasam_fairseq.evaluation.stemmer155 import WORDNET_2_0

HELP = "ROUGE-1, -2, -L and -Lsum"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add files, settings and what else to compute."""
    parser.add_argument("hypotheses", type=Path, help="one summary per line; an empty one scores 0")
    parser.add_argument("references", type=Path, help="one reference per line")
    parser.add_argument(
        "--like", choices=PROGRAMS, default=PROGRAMS[0], help="agree with this (%(default)s)"
    )
    parser.add_argument(
        "--split",
        "--sentence-split",
        choices=tuple(SPLITTERS),
        default="newline",
        help="how sentences are told apart, see above (%(default)s)",
    )
    parser.add_argument(
        "--line-break",
        default="<q>",
        metavar="MARK",
        help="what stands for a line break within a summary (%(default)s)",
    )
    parser.add_argument(
        "--tokenize",
        choices=tuple(TOKENIZATIONS),
        default="none",
        help="ptb: cut sentences into words by NLTK's Penn Treebank rules first (%(default)s)",
    )
    parser.add_argument("--no-stemmer", action="store_true", help="compare words as they are")
    parser.add_argument(
        "--exceptions",
        type=_folder_or_none,
        default=WORDNET_2_0,
        metavar="DIR",
        help="with --like rouge-1.5.5: folder of a WordNet's *.exc files, or 'none' for empty "
        "lists, as files2rouge has (WordNet 2.0's lists, which come with this package)",
    )
    parser.add_argument(
        "--per-example", type=Path, metavar="FILE", help="write one JSON object per pair, by line"
    )
    parser.add_argument(
        "--bootstrap", action="store_true", help="add 95 %% confidence intervals of the means"
    )
    parser.add_argument(
        "--resamples",
        type=whole_number,
        metavar="N",
        help=f"bootstrap resamples behind the intervals ({RESAMPLES})",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="OTHER",
        help="another system's hypotheses: add the differences and their p-values by paired "
        "approximate randomization",
    )
    parser.add_argument(
        "--trials",
        type=whole_number,
        metavar="N",
        help=f"random swappings of that test ({TRIALS})",
    )
    parser.add_argument("--seed", type=int, metavar="N", help=f"of all resampling ({SEED})")


def run(args: argparse.Namespace) -> None:
    """Score, and print."""
    for flag, wanted, by in (
        ("--resamples", args.bootstrap, "--bootstrap"),
        ("--trials", args.against, "--against"),
        ("--seed", args.bootstrap or args.against, "--bootstrap or --against"),
    ):
        if getattr(args, flag.strip("-")) is not None and not wanted:
            raise UserError(f"{flag} is for {by}, which is not given")
    seed = SEED if args.seed is None else args.seed
    report = _score(args, args.hypotheses)
    warning = report.warning("--split")
    result = report.as_json()
    if args.bootstrap:
        resampling = Resampling(args.resamples or RESAMPLES, seed)
        result["confidence_intervals_95"] = report.intervals(resampling)
        result["signature"] += f"|bs:{resampling.draws}|seed:{resampling.seed}"
    if args.against:
        resampling = Resampling(args.trials or TRIALS, seed)
        other = _score(args, args.against)
        warning = warning or other.warning("--split")
        result["against"] = report.compare(other, resampling)
        result["test"] = f"paired-ar|trials:{resampling.draws}|seed:{resampling.seed}"
    if args.per_example:
        lines = (
            json.dumps({"line": number, **scores})
            for number, scores in enumerate(report.examples(), start=1)
        )
        args.per_example.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if warning:
        mark = f", or write {args.line_break} between them" if args.line_break else ""
        print(f"deltasam: warning: {warning}{mark}", file=sys.stderr)
    print(json.dumps(result) if args.json else as_text(report, result))


def as_text(report: RougeReport, result: dict[str, Any]) -> str:
    """Return a small table of the means, and of the intervals and differences in ``result``."""
    lines = [f"{'':10} {'precision':>9} {'recall':>9} {'F':>9}"]
    lines += [
        f"{name:10} {score.precision:9.2f} {score.recall:9.2f} {score.fmeasure:9.2f}"
        for name, score in report.scores.items()
    ]
    if intervals := result.get("confidence_intervals_95"):
        lines += ["", "95 % confidence interval of F"]
        for name, measures in intervals.items():
            low, high = measures["fmeasure"]
            lines.append(f"{name:10} {low:9.2f} {high:9.2f}")
    if differences := result.get("against"):
        lines += ["", f"difference in F to the other system, {result['test']}"]
        for name, measures in differences.items():
            found = measures["fmeasure"]
            lines.append(f"{name:10} {found['difference']:+9.2f}   p = {found['p']:.4f}")
    return "\n".join([*lines, "", f"n = {report.n}, {result['signature']}"])


def _score(args: argparse.Namespace, hypotheses: Path) -> RougeReport:
    try:
        return rouge_scores(
            _read(hypotheses, args.line_break),
            _read(args.references, args.line_break),
            stemmer=not args.no_stemmer,
            split=args.split,
            tokenization=args.tokenize,
            like=args.like,
            exceptions=args.exceptions,
        )
    except UserError as error:
        if hypotheses == args.against:  # two systems: which of them?
            raise UserError(f"{hypotheses}: {error}") from None
        raise


def _read(path: Path, line_break: str) -> list[str]:
    return [line.replace(line_break, "\n") if line_break else line for line in read_lines(path)]


def _folder_or_none(text: str) -> Path | None:
    return None if text == "none" else Path(text)
