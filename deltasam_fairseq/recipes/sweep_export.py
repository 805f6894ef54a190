"""Copies of a sweep's records that can be kept: whole without its runs, and of no machine."""

from __future__ import annotations

from collections.abc import Callable
from math import isclose
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.aligned import read_lines
from deltasam_fairseq.data.labelled_sentences import PreparedSentences
from deltasam_fairseq.data.sentence_task import SentenceTask
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.glue import GlueTask, glue_scores
from deltasam_fairseq.recipes.classification import PREDICTIONS
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.sweep_folder import SweepFolder
from deltasam_fairseq.recipes.sweep_record import examples, neutral


def export_records(
    task: SentenceTask,
    folder: SweepFolder,
    out: SweepFolder,
    *,
    data: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Copy the records of finished runs, with absolute paths cut to their last names.

    A record that an earlier version wrote without the predictions for the single sentences
    gets them from its run.

    Args:
        task: What was trained.
        folder: The sweep.
        out: Where to; ``records`` is made in it, and records of the same names replaced.
        data: The data that the runs were trained on; none is where they found it.
        say: Told what a copy lacks, line by line.

    Returns:
        Number of copies.

    Raises:
        UserError: If no run is finished, or the predictions of a run are not those that its
            record has the metrics of.
    """
    names = folder.recorded()
    if not names:
        raise UserError(f"{folder.path} has no finished run; see: deltasam sweep … --list")
    for name in names:
        record = folder.record(name)
        if record is None:
            continue
        if "examples" not in record:
            found = _examples(task, RunFolder(folder.cell(name)), record, data)
            if found is None:
                say(f"{name}: its predictions are gone, so it cannot be tested over sentences")
            else:
                record["examples"] = found
        out.write_record(name, neutral(record))
    return len(names)


def _examples(
    task: SentenceTask, run: RunFolder, record: dict[str, Any], place: Path | None
) -> dict[str, str] | None:
    path = run.predictions("valid") / PREDICTIONS
    if not path.is_file():
        return None
    predictions = read_lines(path)
    data = PreparedSentences.load(place or Path(run.record()["data"]))
    if data.sha256 != record["data_sha256"]:
        raise UserError(
            f"{data.path} is not what {run.path} was trained on (another hash); give the right "
            "folder with --data"
        )
    labels = data.labels("valid")
    described = GlueTask(task.name, task.metrics, task.classes)
    scored = glue_scores(described, predictions, labels, constant=0.0)
    same = (isclose(scored.scores[name], value) for name, value in record["metrics"].items())
    if not all(same):
        raise UserError(
            f"{path} has {scored.scores}, the record {record['metrics']}: the run was evaluated "
            "anew, so its predictions are not those of the record"
        )
    return examples(task, "valid", predictions, labels)
