"""The metrics of each GLUE task; the one that the paper reports comes first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from deltasam_fairseq import __version__
from deltasam_fairseq.data.glue import GLUE
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.lines import check_lengths, read_numbers
from deltasam_fairseq.evaluation.metrics import CLASS_METRICS, NUMBER_METRICS
from deltasam_fairseq.registry import nearest


@dataclass(frozen=True)
class GlueTask:
    """How a task is scored.

    Args:
        name: As GLUE spells it.
        metrics: Names of metrics; the first is the one of the paper's tables.
        classes: As GLUE's files have them; both files may have numbers from 0 in their place.
            Empty for a regression. Where F1 or Matthews' coefficient is asked for, "1" is the
            positive one.
    """

    name: str
    metrics: tuple[str, ...]
    classes: tuple[str, ...] = ()


#: The tasks of the paper, then the two of GLUE that it does not train on.
TASKS = {name: GlueTask(task.name, task.metrics, task.classes) for name, task in GLUE.items()}
TASKS["mnli-mm"] = replace(TASKS["mnli"], name="MNLI-mm")
TASKS["wnli"] = GlueTask("WNLI", ("accuracy",), ("0", "1"))


@dataclass(frozen=True)
class GlueReport:
    """Scores of one task by metric, in percent, and the number of examples."""

    task: GlueTask
    scores: dict[str, float]
    n: int

    @property
    def signature(self) -> str:
        """Task, metrics and version in one line."""
        metrics = ",".join(self.scores)
        return (
            f"glue|task:{self.task.name}|metrics:{metrics}|paper:{self.task.metrics[0]}"
            f"|version:{__version__}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the report as one flat object for JSON; ``paper_metric`` names the paper's."""
        return {
            **self.scores,
            "paper_metric": self.task.metrics[0],
            "n": self.n,
            "signature": self.signature,
        }


def glue_scores(
    task: str | GlueTask,
    predictions: Sequence[str],
    labels: Sequence[str],
    *,
    constant: float | None = None,
) -> GlueReport:
    """Score predictions for a GLUE task, or for one that is described like them.

    Args:
        task: Name of a GLUE task, in any case, or another task.
        predictions: One line each: a class, by name or number, or a score for STS-B. If all
            are of one class, the metrics are defined.
        labels: The true ones, in the same order and the same way.
        constant: Correlation, from -1 to 1, to give to predictions that are all the same score,
            for which it is not defined; none makes them an error.

    Returns:
        All metrics of the task.

    Raises:
        UserError: If the task is unknown or a line cannot be scored; the message says which.

    Example:
        >>> glue_scores("mrpc", ["1", "1", "0", "1"], ["1", "0", "0", "1"]).scores
        {'accuracy': 75.0, 'f1': 80.0}
    """
    found = task if isinstance(task, GlueTask) else TASKS.get(task.lower())
    if found is None:
        raise UserError(f"unknown GLUE task {task!r}{nearest(str(task).lower(), TASKS)}")
    check_lengths(predictions, labels, "predictions", "labels")
    if found.classes:
        _check_classes(predictions, labels, found)
        scores = {name: CLASS_METRICS[name](predictions, labels) for name in found.metrics}
    else:
        numbers, gold = read_numbers(predictions, "prediction"), read_numbers(labels, "label")
        if constant is not None and len(set(numbers)) == 1 < len(set(gold)):
            scores = dict.fromkeys(found.metrics, constant)
        else:
            scores = {name: NUMBER_METRICS[name](numbers, gold) for name in found.metrics}
    percent = {name: 100 * score for name, score in scores.items()}
    return GlueReport(found, percent, len(labels))


def _check_classes(predictions: Sequence[str], labels: Sequence[str], task: GlueTask) -> None:
    """Refuse unknown classes, and names beside numbers: programs number them differently."""
    numbers = [str(number) for number in range(len(task.classes))]
    known = numbers if labels[0] in numbers else list(task.classes)
    for what, lines in (("label", labels), ("prediction", predictions)):
        for row, line in enumerate(lines, start=1):
            if line not in known:
                raise UserError(
                    f"line {row}: the {what} is {line!r}; {task.name} has the classes "
                    f"{', '.join(task.classes)} or, in both files, 0 to {len(task.classes) - 1}"
                )
