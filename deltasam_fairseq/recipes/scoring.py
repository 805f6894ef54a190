"""Scores of a run and of the baselines that need no training."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.prepared import SOURCE, TARGET, PreparedData
from deltasam_fairseq.data.process import Say
from deltasam_fairseq.evaluation.baselines import lead, median_words, most_frequent
from deltasam_fairseq.evaluation.rouge import rouge_scores
from deltasam_fairseq.files import read_json, write_json
from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.evaluation import Evaluation, EvaluationOptions
from deltasam_fairseq.recipes.generation import Generated, generate
from deltasam_fairseq.recipes.run_folder import RunFolder

SCORES = "scores.json"
MODEL = "model"


def evaluate_texts(
    recipe: Recipe, data: PreparedData, run: RunFolder, options: EvaluationOptions
) -> Evaluation:
    """Generate the texts of a split with a run's best checkpoint, and score them."""
    split = options.split or "test"
    generated = generate(recipe, data, run, split, options)
    score_run(data, generated, split, rouge={**recipe.rouge, **options.rouge()})
    return Evaluation(split, in_table=True)


def score_run(
    data: PreparedData,
    generated: Generated,
    split: str,
    *,
    rouge: Mapping[str, str] | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Score a model's texts and two baselines on the same references, with ``rouge_scores``.

    Returns:
        What is written to ``scores.json``: ``systems`` maps ``model`` and the names of the
        baselines to their ROUGE report.
    """
    settings = rouge or {}
    sources, targets = data.texts(split, SOURCE), data.texts("train", TARGET)
    words = median_words(targets)
    systems = {
        MODEL: generated.hypotheses,
        f"lead (first {words} words)": lead(sources, words=words),
        "most frequent target": most_frequent(targets, count=len(sources)),
    }
    say(f"scoring {len(generated.references)} pairs, model and {len(systems) - 1} baselines …")
    reports = {
        name: rouge_scores(
            texts,
            generated.references,
            split=settings.get("split", "newline"),
            tokenization=settings.get("tokenization", "none"),
            like=settings.get("like", "rouge-score"),
        )
        for name, texts in systems.items()
    }
    model = reports[MODEL]
    if warning := model.warning("--sentence-split"):
        print(f"deltasam: warning: {warning}", file=sys.stderr)
    scores = {
        "split": split,
        "n": model.n,
        "signature": model.signature,
        "data_sha256": generated.facts["data_sha256"],
        "checkpoint_sha256": generated.facts["checkpoint_sha256"],
        "decoding": generated.facts["flags"],
        "systems": {name: report.as_json() for name, report in reports.items()},
    }
    write_json(generated.folder / SCORES, scores)
    return scores


def read_scores(run: Path, split: str) -> dict[str, Any] | None:
    """Read what :func:`score_run` wrote; none if the run was not evaluated on that split."""
    path = RunFolder(run).results(split) / SCORES
    return read_json(path) if path.is_file() else None
