"""What the record of a run keeps of the single sentences, and what it leaves out of its machine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from deltasam_fairseq.data.sentence_task import SentenceTask

#: An absolute path: a slash that ends no other word, and names between slashes.
_PATH = re.compile(r"(?<![\w.~/-])(?:/[^\s/'\",;:(){}\[\]]+)+/?")


def pack(task: SentenceTask, lines: Sequence[str]) -> str:
    """Write labels or predictions of a split in one line.

    Args:
        task: Whose classes they are.
        lines: One per sentence, as the task's files have them.

    Returns:
        Ids of the classes, or scores with four decimals, separated by spaces.

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
    task: SentenceTask, split: str, predictions: Sequence[str], labels: Sequence[str]
) -> dict[str, str]:
    """Return what a record keeps of a split's sentences, to test differences with.

    Args:
        task: What is predicted.
        split: Name of the split.
        predictions: One per sentence.
        labels: The true ones, in the same order.

    Returns:
        ``split``, ``predictions`` and ``labels``, both as :func:`pack` writes them.
    """
    return {
        "split": split,
        "predictions": pack(task, predictions),
        "labels": pack(task, labels),
    }


def neutral(value: Any) -> Any:
    """Leave out where on a machine things are.

    Args:
        value: What JSON knows: a record, or a part of one.

    Returns:
        The same with the last name alone of every absolute path. Relative paths stay.

    Example:
        >>> neutral({"save-dir": "/home/me/run/checkpoints", "restore-file": "models/m/model.pt"})
        {'save-dir': 'checkpoints', 'restore-file': 'models/m/model.pt'}
    """
    if isinstance(value, str):
        return _PATH.sub(lambda found: found[0].rstrip("/").rpartition("/")[2], value)
    if isinstance(value, Mapping):
        return {name: neutral(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [neutral(part) for part in value]
    return value
