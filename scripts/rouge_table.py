"""Print the table of docs/rouge.md: what several scorers say of the same 376 summaries.

    python scripts/rouge_table.py FILE

FILE is ``rouge155_scored.jsonl``: outputs of three systems for CNN/DailyMail, one JSON object
per summary, with its sentences (``hyp_sents``, ``ref_sents``, PTB-tokenized) and what
ROUGE-1.5.5 gave it (``published``). The summaries are those of REALSumm (Bhandari et al. 2020,
github.com/neulab/REALSumm, CC BY 4.0). A scorer that is not installed has no row; seconds.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

from deltasam_fairseq.evaluation.rouge import rouge_scores
from deltasam_fairseq.markdown import markdown_lines

_HEAD = ("Scorer", "Sentences", "ROUGE-1", "ROUGE-2", "ROUGE-L")
_RULES = {
    "newline": "as given",
    "one": "none: one line",
    "ptb": "`--split ptb`",
    "files2rouge": "`--split files2rouge`",
    "sentences": "`--split sentences`",
}
#: What is run, by its name in the table: options, and how sentences are told apart.
_ROWS: list[tuple[str, dict[str, Any], str]] = [
    ("`--like rouge-1.5.5`", {"like": "rouge-1.5.5"}, "newline"),
    (
        "`--like rouge-1.5.5 --exceptions none`",
        {"like": "rouge-1.5.5", "exceptions": None},
        "newline",
    ),
    ("`--like rouge-1.5.5 --no-stemmer`", {"like": "rouge-1.5.5", "stemmer": False}, "newline"),
    ("rouge-score, stemmed (the default)", {}, "newline"),
    ("rouge-score, `--no-stemmer`", {"stemmer": False}, "newline"),
    ("`--like rouge-1.5.5`", {"like": "rouge-1.5.5"}, "one"),
    ("`--like rouge-1.5.5`", {"like": "rouge-1.5.5"}, "ptb"),
    ("`--like rouge-1.5.5`", {"like": "rouge-1.5.5"}, "files2rouge"),
    ("`--like rouge-1.5.5`", {"like": "rouge-1.5.5"}, "sentences"),
    (
        "`--like rouge-1.5.5 --tokenize ptb`",
        {"like": "rouge-1.5.5", "tokenization": "ptb"},
        "newline",
    ),
]


def table(path: Path) -> str:
    """Score the summaries in every way.

    Args:
        path: The file of summaries.

    Returns:
        A Markdown table of F-measures in percent, and a line of versions.
    """
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [*_published(entries), *_ours(entries), *_pltrdy(entries)]
    cells = [(name, rule, *(f"{value:.2f}" for value in values)) for name, rule, values in rows]
    lines = markdown_lines(_HEAD, ["---"] * len(_HEAD), cells)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("rouge-score", "nltk"))
    return "\n".join([*lines, "", f"{len(entries)} summaries, F in percent; {versions}."])


_Row = tuple[str, str, list[float]]


def _published(entries: list[dict[str, Any]]) -> Iterator[_Row]:
    scores = [
        100 * fmean(entry["published"][f"rouge_{variant}_f_score"] for entry in entries)
        for variant in "12l"
    ]
    yield "ROUGE-1.5.5 (Perl), `-n 2 -m`, published", _RULES["newline"], scores


def _ours(entries: list[dict[str, Any]]) -> Iterator[_Row]:
    for name, options, rule in _ROWS:
        hypotheses, references = (
            [("\n" if rule == "newline" else " ").join(entry[side]) for entry in entries]
            for side in ("hyp_sents", "ref_sents")
        )
        split = "newline" if rule == "one" else rule
        scores = rouge_scores(hypotheses, references, split=split, **options).scores
        values = [scores[variant].fmeasure for variant in ("rouge1", "rouge2", "rougeLsum")]
        yield name, _RULES[rule], values


def _pltrdy(entries: list[dict[str, Any]]) -> Iterator[_Row]:
    if importlib.util.find_spec("rouge") is None:
        return
    scorer = importlib.import_module("rouge").Rouge()
    sides = ([" ".join(entry[side]) for entry in entries] for side in ("hyp_sents", "ref_sents"))
    scores = scorer.get_scores(*sides, avg=True)
    values = [100 * scores[variant]["f"] for variant in ("rouge-1", "rouge-2", "rouge-l")]
    yield f"`rouge` {metadata.version('rouge')} (pltrdy)", "at each `.`", values


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
