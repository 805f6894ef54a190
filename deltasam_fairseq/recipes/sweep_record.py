"""What is kept of a finished run: its record, and copies of records in another folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isclose
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.aligned import read_lines
from deltasam_fairseq.data.labelled_sentences import PreparedSentences
from deltasam_fairseq.data.sentence_task import SentenceTask
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.glue import GlueTask, glue_scores
from deltasam_fairseq.recipes.classification import PREDICTIONS, examples
from deltasam_fairseq.recipes.command import flag_values
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.sweep_folder import SweepFolder
from deltasam_fairseq.recipes.train_log import read_curve

_FROM_RUN = (
    *("recipe", "recipe_version", "model", "method", "seed", "data_sha256"),
    *("versions", "commit", "hardware"),
)


def make_record(
    run: RunFolder, grid: Mapping[str, str], scores: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the record of a run that was trained and evaluated; it names no folder of a machine.

    Args:
        run: The run.
        grid: The values of the search.
        scores: Of :meth:`~deltasam_fairseq.recipes.kinds.base.DataKind.scores_of`.
    """
    record = run.record()
    # What a start that was killed took of the processor is known to nobody.
    ended = [start for start in record["starts"] if "seconds" in start]
    seconds = {"train": round(sum(start["seconds"] for start in ended), 2)}
    if all("processor_seconds" in start for start in ended):
        used = sum(start["processor_seconds"] for start in ended)
        seconds["train_processor"] = round(used, 2)
    epochs = read_curve(run.log, "train")  # the other lines leave the last few updates out
    return {
        **{name: record[name] for name in _FROM_RUN},
        "load": record.get("load"),  # runs begun by an earlier version have none
        "grid": dict(grid),
        "flags": without_folders(flag_values(record["starts"][0]["command"])),
        "encoder_sha256": record["encoder"]["sha256"],
        **scores,
        "seconds": seconds,
        "interruptions": len(record["starts"]) - 1,
        "updates": (epochs or read_curve(run.log))[-1]["num_updates"],
        "epochs": {"train": epochs, "valid": read_curve(run.log, "valid")},
    }


def without_folders(flags: Mapping[str, str]) -> dict[str, str]:
    """Return flags with the last name alone of each absolute path; fairseq joins paths by colons.

    Example:
        >>> without_folders({"save-dir": "/home/me/my run/checkpoints", "lr": "1e-4"})
        {'save-dir': 'checkpoints', 'lr': '1e-4'}
    """
    return {name: _last_names(value) for name, value in flags.items()}


def _last_names(value: str) -> str:
    paths = value.removeprefix("file:")
    if not paths.startswith("/"):
        return value
    return ":".join(Path(path).name or path for path in paths.split(":"))


def export_records(
    task: SentenceTask | None,
    folder: SweepFolder,
    out: SweepFolder,
    *,
    data: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Return the number of finished runs, after their records were copied.

    A record that an earlier version wrote gets what it lacks: the predictions for the single
    sentences, from its run. Folders of its machine are left out.

    Args:
        task: What was trained; none if there are no predictions to keep.
        folder: The sweep.
        out: Where to; ``records`` is made in it, and records of the same names replaced.
        data: The data that the runs were trained on; none is where they found it.
        say: Told what a copy lacks, line by line.

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
        if task is not None and "examples" not in record:
            found = _find_examples(task, RunFolder(folder.cell(name)), record, data)
            if found is None:
                say(f"{name}: its predictions are gone, so it cannot be tested over sentences")
            else:
                record["examples"] = found
        out.write_record(name, {**record, "flags": without_folders(record["flags"])})
    return len(names)


def _find_examples(
    task: SentenceTask, run: RunFolder, record: Mapping[str, Any], place: Path | None
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
    scores = glue_scores(described, predictions, labels, constant=0.0).scores
    if not all(isclose(scores[name], value) for name, value in record["metrics"].items()):
        raise UserError(
            f"{path} has {scores}, the record {record['metrics']}: the run was evaluated "
            "anew, so its predictions are not those of the record"
        )
    return examples(task, predictions, labels)
