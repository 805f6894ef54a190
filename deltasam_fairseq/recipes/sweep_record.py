"""What the record of a run keeps of the single sentences, and what it leaves out of its machine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from deltasam_fairseq.data.sentence_task import SentenceTask

#: How an absolute path begins, maybe as a URL.
_ROOT = r"(?:file:)?/"
#: A text that is a path as a whole, or the value of an option.
_WHOLE = re.compile(rf"(?:[\w.-]+=)?{_ROOT}")
#: What ends such a path: the next one, or an option. All else may be in its names.
_END = re.compile(rf"((?:[\s,;=]|(?<!\bfile):)+(?={_ROOT})|\s+(?=--?\w))")
#: A path within another text: all between quotes, or else names without spaces. Before its last
#: name it may have commas and brackets. Slashes behind a word, or of https://, begin none.
_WITHIN = re.compile(
    rf"""(?<='){_ROOT}[^']+(?=')|(?<="){_ROOT}[^"]+(?=")"""
    r"""|(?<![\w.~/)\]}+%-])(?!(?<=:)//)(?:file:(?=/))?"""
    r"""(?:/+[^\s/'"]*[^\s/'",;:](?=/))*/+[^\s/'",;:(){}\[\]]+/*"""
)


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
        The same with the last name alone of every absolute path. Relative paths stay. A text
        that begins with an absolute path is one, with all spaces and commas, up to the next
        absolute path or an option; within other texts a path with spaces needs quotes.

    Example:
        >>> neutral({"save-dir": "/home/me/my run/checkpoints", "restore-file": "models/m.pt"})
        {'save-dir': 'checkpoints', 'restore-file': 'models/m.pt'}
    """
    if isinstance(value, str):
        return _without_folders(value)
    if isinstance(value, Mapping):
        return {name: neutral(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [neutral(part) for part in value]
    return value


def _without_folders(text: str) -> str:
    parts = _END.split(text) if _WHOLE.match(text) else [text]
    shorter = "".join(
        _last_name(part) if re.match(_ROOT, part) else _WITHIN.sub(_last_name_found, part)
        for part in parts
    )
    return text if shorter in {text, ""} else _without_folders(shorter)


def _last_name_found(found: re.Match[str]) -> str:
    return _last_name(found[0])


def _last_name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
