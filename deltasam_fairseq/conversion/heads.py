"""Placing a classification head: its rows in the order of the classes of GLUE's tasks.

A head's rows are told apart by the labels in ``config.json`` alone. Models of one task order
them differently, and so does GLUE here: MNLI's ``entailment`` is class 0, which is often the
last row on the Hub. A head that starts with its classes in a wrong order is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from deltasam_fairseq.conversion.encoder_weights import HEAD
from deltasam_fairseq.data.encoder import BERT
from deltasam_fairseq.data.glue import GLUE

_PARTS = (f"{HEAD}.out_proj.weight", f"{HEAD}.out_proj.bias")
_HIDDEN = f"{HEAD}.dense.weight"
_CLASS = "ForSequenceClassification"
#: What the library datasets calls the classes that GLUE's tables number, class 0 first.
_NAMED = {
    "QQP": ("not_duplicate", "duplicate"),
    "MRPC": ("not_equivalent", "equivalent"),
    "CoLA": ("unacceptable", "acceptable"),
    "SST-2": ("negative", "positive"),
}


class PlacedHead(NamedTuple):
    """What was done with the head of a checkpoint.

    Attributes:
        tasks: The tasks of GLUE that may start from it; empty if it was left out.
        classes: The labels of its rows, in their new order.
        note: What was done and why, for the record.
    """

    tasks: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    note: str = "the checkpoint has none"


def place_head(
    found: dict[str, Tensor], config: Mapping[str, Any], family: str, *, new: bool = False
) -> PlacedHead:
    """Order the rows of a head as GLUE orders the classes that its labels name.

    Args:
        found: Weights by fairseq's names; changed in place. A head that cannot be placed is
            taken out.
        config: Content of ``config.json``.
        family: ``BERT`` or ``ROBERTA``.
        new: Whether the head is taken out in any case.

    Returns:
        What was done, and why.

    Example:
        >>> import torch
        >>> state = {_PARTS[0]: torch.tensor([[1.0], [2.0]]), _PARTS[1]: torch.tensor([3.0, 4.0])}
        >>> place_head(state, {"id2label": {"0": "POSITIVE", "1": "NEGATIVE"}}, BERT).tasks
        ('SST-2',)
        >>> state[_PARTS[1]]
        tensor([4., 3.])
    """
    if not any(name.startswith(f"{HEAD}.") for name in found):
        return PlacedHead()
    labels = _labels(config)
    reason = "as asked for" if new else _misfit(found, config, family, labels)
    order, tasks = _order(labels)
    if not reason and not tasks:
        reason = f"its labels ({', '.join(labels)}) are not the classes of any task of GLUE"
    if reason:
        for name in [name for name in found if name.startswith(f"{HEAD}.")]:
            del found[name]
        return PlacedHead(note=f"left out: {reason}")
    for name in _PARTS:
        found[name] = found[name][order]
    classes = tuple(labels[row] for row in order)
    return PlacedHead(tasks, classes, f"kept for {', '.join(tasks)}; rows: {', '.join(classes)}")


def _misfit(
    found: Mapping[str, Tensor], config: Mapping[str, Any], family: str, labels: Sequence[str]
) -> str:
    """Return why the rows of a head cannot be assigned to classes; empty if they can."""
    named = config.get("architectures") or ()
    classes = [named] if isinstance(named, str) else [str(name) for name in named]
    if classes and not any(name.endswith(_CLASS) for name in classes):
        return f"it is that of a {classes[0]}, not of a model {_CLASS.removeprefix('For')}"
    weight, bias = (tuple(found[name].shape) if name in found else () for name in _PARTS)
    matrix = len(weight) == 2 and bias == weight[:1]
    if not matrix or (family != BERT and _HIDDEN not in found):
        return "it is not that of a classifier of sentences"
    rows = weight[0]
    if rows == 1:
        return "nothing says on which scale its one output is; scores train on 0 to 1 here"
    if not labels:
        return "no id2label in config.json names its rows, or label2id says something else"
    if len(labels) != rows:
        return f"id2label in config.json names {len(labels)} labels, but it has {rows} rows"
    return ""


def _labels(config: Mapping[str, Any]) -> list[str]:
    """Return the label of each row; none where the numbers or both directions do not agree."""
    both = (config.get("id2label"), config.get("label2id"))
    rows_first, labels_first = (found if isinstance(found, dict) else {} for found in both)
    named = {str(row): str(label) for row, label in rows_first.items()}
    turned = {str(row): str(label) for label, row in labels_first.items()}
    if named and turned and named != turned:
        return []
    names = named or turned
    rows = [str(row) for row in range(len(names))]
    return [names[row] for row in rows] if set(rows) == set(names) else []


def _order(labels: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Return the row of each class and the tasks that have these classes."""
    plain = [re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_") for label in labels]
    order, tasks = [], []
    for task in GLUE.values():
        for names in (task.classes, _NAMED.get(task.name, ())):
            if names and sorted(names) == sorted(plain):
                order = [plain.index(name) for name in names]
                tasks.append(task.name)
    return order, tuple(tasks)
