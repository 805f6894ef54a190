"""Running a classifier over a split, scoring it, and writing test predictions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.labelled_sentences import PreparedSentences, write_submission
from deltasam_fairseq.data.process import Say, require_fairseq, run_program
from deltasam_fairseq.data.sentence_task import SentenceTask
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.glue import GlueTask, glue_scores
from deltasam_fairseq.files import file_sha256, read_json, write_json, write_lines
from deltasam_fairseq.recipes.command import predict_command
from deltasam_fairseq.recipes.evaluation import Evaluation, EvaluationOptions
from deltasam_fairseq.recipes.run_folder import RunFolder

SCORES = "scores.json"
PREDICTIONS = "predictions.txt"


@dataclass(frozen=True)
class Classified:
    """What a checkpoint made of a split: ``scores``, or for one without labels ``submission``."""

    folder: Path
    predictions: list[str]
    scores: dict[str, Any] | None
    submission: Path | None


def evaluate_labels(
    task: SentenceTask, data: PreparedSentences, run: RunFolder, options: EvaluationOptions
) -> Evaluation:
    """Predict the labels of a split with a run's best checkpoint, and score them if it has some."""
    split = options.split or "valid"
    found = classify(task, data, run, split, cpu=options.cpu)
    if found.scores is None:
        count = len(found.predictions)
        said = f"{found.submission}: {count} predictions, without labels to score"
        return Evaluation(split, (said,))
    marks = {task.metrics[0]: "   the paper's"}
    lines = (f"{name:9} {found.scores[name]:7.2f}{marks.get(name, '')}" for name in task.metrics)
    return Evaluation(split, tuple(lines))


def classify(
    task: SentenceTask,
    data: PreparedSentences,
    run: RunFolder,
    split: str,
    *,
    cpu: bool = False,
    say: Say = print,
) -> Classified:
    """Run the best checkpoint over a split, and score it or write the file to hand in."""
    checkpoint = run.require_best_checkpoint()
    data.require_split(split)
    require_fairseq()
    folder = run.predictions(split)
    folder.mkdir(parents=True, exist_ok=True)
    raw, log = folder / "logits.json", folder / "predict.log"
    command = predict_command(data.binary, checkpoint, split, raw, cpu=cpu)
    began = time.monotonic()
    run_program("prediction", command, log)
    predictions = to_labels(task, read_json(raw))
    if len(predictions) != data.facts["rows"][split]:
        raise UserError(
            f"{raw}: {len(predictions)} predictions for {data.facts['rows'][split]} rows"
        )
    write_lines(folder / PREDICTIONS, predictions)
    if not data.raw(split, "label").is_file():
        return Classified(
            folder, predictions, None, write_submission(folder, task, split, predictions)
        )
    scored = GlueTask(task.name, task.metrics, task.classes)
    # A model that collapsed has learned nothing: 0, as in training and as CoLA's Matthews has it.
    report = glue_scores(scored, predictions, data.labels(split), constant=0.0)
    scores = {
        **report.as_json(),
        "split": split,
        "checkpoint_sha256": file_sha256(checkpoint),
        "data_sha256": data.sha256,
        "seconds": round(time.monotonic() - began, 1),
    }
    write_json(folder / SCORES, scores)
    say(f"{folder / SCORES}: {task.metrics[0]} {scores[task.metrics[0]]:.2f}, n = {scores['n']}")
    return Classified(folder, predictions, scores, None)


def to_labels(task: SentenceTask, found: dict[str, Any]) -> list[str]:
    """Turn logits into classes, or scores within their range, in the order of the data.

    Returns:
        Labels as the task's files have them.

    Raises:
        UserError: If a logit is not finite: no class is the largest then.

    Example:
        >>> from deltasam_fairseq.data.glue import GLUE
        >>> to_labels(GLUE["rte"], {"ids": [1, 0], "logits": [[0.1, 0.2], [0.4, 0.3]]})
        ['not_entailment', 'entailment']
    """
    ordered = sorted(zip(found["ids"], found["logits"], strict=True))
    for number, logits in ordered:
        if not all(map(isfinite, logits)):
            raise UserError(
                f"the logits of line {number + 1} are not finite; the training diverged, a smaller "
                "--lr or --sam-rho may help"
            )
    if task.is_regression:
        scaled = (logits[0] * task.label_scale for _, logits in ordered)
        return [repr(min(max(value, 0.0), task.label_scale)) for value in scaled]
    ids = range(len(task.classes))
    return [task.classes[max(ids, key=logits.__getitem__)] for _, logits in ordered]


def scores_of_validation(
    task: SentenceTask, data: PreparedSentences, run: RunFolder, *, cpu: bool, say: Say
) -> dict[str, Any]:
    """Predict the splits for validation, for the record of a sweep.

    Returns:
        Metrics of ``valid`` and of the ``other_splits``, and what tests over sentences need.
    """
    classified = {
        split: classify(task, data, run, split, cpu=cpu, say=say)
        for split in data.facts["rows"]
        if split.startswith("valid")
    }
    scores = {split: one.scores or {} for split, one in classified.items()}
    found = scores.pop("valid")
    return {
        "metrics": {name: found[name] for name in task.metrics},
        "other_splits": {
            split: {name: others[name] for name in task.metrics} for split, others in scores.items()
        },
        "n": found["n"],
        "signature": found["signature"],
        "checkpoint_sha256": found["checkpoint_sha256"],
        "examples": examples(task, classified["valid"].predictions, data.labels("valid")),
    }


def pack(task: SentenceTask, lines: Sequence[str]) -> str:
    """Return labels or predictions of a split in one line.

    They are ids of the classes, or scores with four decimals, separated by spaces.

    Args:
        task: Whose classes they are.
        lines: One per sentence, as the task's files have them.

    Example:
        >>> from deltasam_fairseq.data.glue import GLUE
        >>> pack(GLUE["rte"], ["not_entailment", "entailment"])
        '0 1'
        >>> pack(GLUE["sts-b"], ["3.20000001", "5"])
        '3.2 5'
    """
    if task.is_regression:
        return " ".join(f"{float(line):.4f}".rstrip("0").rstrip(".") for line in lines)
    ids = {name: str(number) for number, name in enumerate(task.classes)}
    return " ".join(ids.get(line, line) for line in lines)  # files may have ids already


def examples(
    task: SentenceTask, predictions: Sequence[str], labels: Sequence[str]
) -> dict[str, str]:
    """Return what a record keeps of the validation sentences, to test differences with."""
    packed = {"predictions": pack(task, predictions), "labels": pack(task, labels)}
    return {"split": "valid", **packed}
