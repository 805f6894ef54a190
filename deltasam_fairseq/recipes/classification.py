"""Running a classifier over a split, scoring it, and writing test predictions."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.files import file_sha256
from deltasam_fairseq.data.prepared_sentences import PreparedSentences
from deltasam_fairseq.data.process import failure, require_fairseq, run_logged
from deltasam_fairseq.data.sentence_task import SentenceTask
from deltasam_fairseq.data.submission import write_submission
from deltasam_fairseq.data.tokens import write_lines
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.glue import GlueTask, glue_scores
from deltasam_fairseq.plugin_path import plugin_dir
from deltasam_fairseq.recipes.run_folder import RunFolder

SCORES = "scores.json"
PREDICTIONS = "predictions.txt"


@dataclass(frozen=True)
class Classified:
    """What a checkpoint made of a split.

    Args:
        folder: Holds ``predictions.txt`` and ``scores.json`` or the submission file.
        predictions: Labels or scores as the task's files have them, in their order.
        scores: Content of ``scores.json``; none for a split without labels.
        submission: The file to hand in, for a split without labels.
    """

    folder: Path
    predictions: list[str]
    scores: dict[str, Any] | None
    submission: Path | None


def classify(
    task: SentenceTask,
    data: PreparedSentences,
    run: RunFolder,
    split: str,
    *,
    cpu: bool = False,
    say: Callable[[str], None] = print,
) -> Classified:
    """Run the best checkpoint over a split, and score it or write the submission.

    Args:
        task: What is predicted.
        data: What the run was trained on.
        run: The run.
        split: Name of the split.
        cpu: Whether to leave a GPU alone.
        say: Told what happens, line by line.

    Returns:
        Predictions, and scores where there are labels.

    Raises:
        UserError: If there is no checkpoint or no such split, or if the process fails.
    """
    checkpoint = run.best_checkpoint
    if not checkpoint.is_file():
        raise UserError(
            f"{checkpoint}: no such file; train first (it is written after the first validation)"
        )
    data.require_split(split)
    require_fairseq()
    folder = run.predictions(split)
    folder.mkdir(parents=True, exist_ok=True)
    raw, log = folder / "logits.json", folder / "predict.log"
    command = [
        *(sys.executable, "-m", "deltasam_fairseq.inference", "predict", str(data.binary)),
        *("--path", str(checkpoint), "--split", split, "--out", str(raw)),
        *("--user-dir", str(plugin_dir()), *(("--cpu",) if cpu else ())),
    ]
    began = time.monotonic()
    status = run_logged(command, log)
    if status:
        raise UserError(failure("prediction", status, log))
    predictions = to_labels(task, json.loads(raw.read_text(encoding="utf-8")))
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
    (folder / SCORES).write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    say(f"{folder / SCORES}: {task.metrics[0]} {scores[task.metrics[0]]:.2f}, n = {scores['n']}")
    return Classified(folder, predictions, scores, None)


def to_labels(task: SentenceTask, found: dict[str, Any]) -> list[str]:
    """Turn logits into labels, in the order of the data.

    Args:
        task: What is predicted.
        found: ``ids`` and ``logits``.

    Returns:
        Classes, or for a regression scores within its range.

    Example:
        >>> from deltasam_fairseq.data.glue import GLUE
        >>> to_labels(GLUE["rte"], {"ids": [1, 0], "logits": [[0.1, 0.2], [0.4, 0.3]]})
        ['not_entailment', 'entailment']
    """
    ordered = sorted(zip(found["ids"], found["logits"], strict=True))
    if task.is_regression:
        scaled = (logits[0] * task.label_scale for _, logits in ordered)
        return [repr(min(max(value, 0.0), task.label_scale)) for value in scaled]
    ids = range(len(task.classes))
    return [task.classes[max(ids, key=logits.__getitem__)] for _, logits in ordered]
