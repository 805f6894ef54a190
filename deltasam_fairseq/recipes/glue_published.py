"""Tables 1, 4, 5 and 6 of Zhou et al. 2022, as printed."""

from __future__ import annotations

from collections.abc import Mapping

#: In the order of the columns of Tables 1, 5 and 6.
TASKS = ("mnli", "qqp", "rte", "qnli", "mrpc", "cola", "sst-2", "sts-b")

BERT, ROBERTA = "bert_base", "roberta_large"

#: What the rows of the tables are called here, for the methods that can be run.
ROW_OF_METHOD = {
    "none": "vanilla",
    "sam": "SAM",
    "delta_sam": "δ-SAM",
    "per_instance": "per-instance",
}


def _rows(text: str) -> dict[str, tuple[str, ...]]:
    """Read lines of a name, a bar and cells; a hyphen stands for a cell without a number."""
    pairs = (line.split("|") for line in text.strip().splitlines())
    return {name.strip(): tuple(cells.split()) for name, cells in pairs}


#: Average first, then the tasks. An asterisk: from a model trained on MNLI first.
TABLE_1: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    BERT: _rows(
        """
        vanilla | 82.9 83.8 91.0 68.2 90.8 85.3 62.3 92.4 89.3
        R-Drop  | 84.1 85.5 91.4 71.1 92.0 87.3 62.6 93.0 89.6
        SAM     | 83.9 85.0 91.6 69.3 91.7 88.2 63.1 93.0 89.4
        δ-SAM   | 84.7 85.2 91.7 72.2 91.5 89.5 63.8 93.7 89.7
        """
    ),
    ROBERTA: _rows(
        """
        vanilla | 88.9 90.2 92.2 86.6 94.7 90.9 68.0 96.4 92.4
        R-Drop  | 89.7 90.9 92.5 88.4 95.2 91.4 70.0 96.9 92.5
        FreeLB  | 89.8 90.6 92.6 88.1 95.0 91.4 71.1 96.7 92.7
        SMART   | -    91.1 92.4 92.0* 95.6 89.2* 70.6 96.9 92.8*
        R3F     | -    91.1 92.4 88.5 95.3 91.6 71.2 97.0 -
        SAM     | 89.6 91.0 92.3 88.5 95.0 91.4 69.2 96.7 92.4
        δ-SAM   | 90.1 91.1 92.5 89.2 95.1 92.2 71.1 96.9 92.7
        """
    ),
}

#: Rows of Table 1 that are medians over seeds, by the papers that they were taken from; the
#: others are the best.
MEDIANS = ((ROBERTA, "vanilla"),)

#: BERT: adversarial risk, then median and maximum of the accuracy.
TABLE_4_TASKS = ("mrpc", "rte")
TABLE_4: Mapping[str, Mapping[str, tuple[str, str, str]]] = {
    "mrpc": {
        "vanilla": ("1.93", "84.6", "85.3"),
        "SAM": ("0.62", "86.8", "88.2"),
        "δ-SAM": ("0.59", "87.5", "89.5"),
        "per-instance": ("0.50", "88.2", "89.7"),
    },
    "rte": {
        "vanilla": ("2.97", "67.9", "68.2"),
        "SAM": ("0.78", "68.6", "69.3"),
        "δ-SAM": ("0.75", "69.3", "72.2"),
        "per-instance": ("0.65", "70.0", "71.5"),
    },
}

#: rho and eta, by model and task.
TABLE_5: Mapping[str, Mapping[str, tuple[float, float]]] = {
    model: {
        task: (0.01 if task == "sts-b" else rho, 5e-4 if task == "rte" else 1e-4) for task in TASKS
    }
    for model, rho in ((BERT, 0.05), (ROBERTA, 0.02))
}

#: Minutes on one RTX 2080.
TABLE_6: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    BERT: _rows(
        """
        SAM          | 1240 818 15 349 12 25 118 26
        δ-SAM        | 1350 995 16 450 15 25 132 31
        per-instance | - - 87 - 105 - - -
        """
    ),
    ROBERTA: _rows(
        """
        SAM   | 1056 2591 33 1402 30 38 285 42
        δ-SAM | 1699 2963 36 1425 35 45 325 58
        """
    ),
}


def published(model: str, task: str) -> dict[str, str]:
    """Return one column of Table 1.

    Args:
        model: ``BERT`` or ``ROBERTA``.
        task: One of ``TASKS``.

    Returns:
        Cells by row, without those that have no number.

    Example:
        >>> published("bert_base", "rte")["δ-SAM"]
        '72.2'
    """
    column = TASKS.index(task) + 1
    cells = {row: values[column] for row, values in TABLE_1[model].items()}
    return {row: cell for row, cell in cells.items() if cell != "-"}
