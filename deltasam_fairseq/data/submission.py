"""Predictions as GLUE's server takes them: ``index`` and ``prediction``, one file per test set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltasam_fairseq.data.sentence_task import SentenceTask
from deltasam_fairseq.data.tokens import write_lines
from deltasam_fairseq.errors import UserError


def write_submission(
    folder: Path, task: SentenceTask, split: str, predictions: Sequence[str]
) -> Path:
    """Write the predictions for a test set.

    Args:
        folder: Where to.
        task: The task.
        split: Its name.
        predictions: Labels or scores, in the order of the file.

    Returns:
        The file, named as the server wants it.

    Raises:
        UserError: If the split has no such file, or the number of predictions is another
            than that of the test set.
    """
    found = task.split(split)
    if not found.submission:
        raise UserError(f"{task.name} has no submission file for {split!r}")
    if found.counts and len(predictions) not in found.counts:
        raise UserError(
            f"{len(predictions)} predictions for {task.name}, whose {split} set has "
            f"{found.counts[0]}; the server refuses the file"
        )
    path = folder / found.submission
    rows = [f"{index}\t{prediction}" for index, prediction in enumerate(predictions)]
    write_lines(path, ["index\tprediction", *rows])
    return path
