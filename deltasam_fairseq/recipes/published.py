"""Every number that this project compares itself with: Tables 1 to 6 of Zhou et al. 2022.

A rival's row is as Zhou et al. print it, and says which of the rival's seeds it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: GLUE's tasks in the order of the columns of Tables 1, 5 and 6.
TASKS = ("mnli", "qqp", "rte", "qnli", "mrpc", "cola", "sst-2", "sts-b")
#: The columns of Table 3.
ROUGE = ("rouge1", "rouge2", "rougeLsum")

BERT, ROBERTA = "bert_base", "roberta_large"
MIRROR_BERT, MIRROR_ROBERTA = "mirror_bert_base", "mirror_roberta_base"

#: What the rows of the tables are called here, for the methods that can be run.
ROW_OF_METHOD = {
    "none": "vanilla",
    "sam": "SAM",
    "delta_sam": "δ-SAM",
    "per_instance": "per-instance",
    "rdrop": "R-Drop",
    "freelb": "FreeLB",
    "smart": "SMART",
    "r3f": "R3F",
    "sam+noise": "SAM + noise",
    "delta_sam+noise": "δ-SAM + noise",
}
METHOD_OF_ROW = {row: method for method, row in ROW_OF_METHOD.items()}

#: In place of a fact that a paper does not state.
UNKNOWN = "not stated"


@dataclass(frozen=True)
class PublishedRow:
    """One row of a table.

    Args:
        cells: As printed, in the order of the table's columns; ``-`` for no number.
        seeds: Which of how many seeds the numbers are.
        average: As printed, which is not always the mean of the cells.
        scorer: What computed the scores.
        hardware: What it was trained on.
        hours: How long that took.
    """

    cells: tuple[str, ...]
    seeds: str = UNKNOWN
    average: str = "-"
    scorer: str = UNKNOWN
    hardware: str = UNKNOWN
    hours: str = UNKNOWN

    @property
    def is_median(self) -> bool:
        """Whether the numbers are medians over seeds."""
        return self.seeds.startswith("median")


Rows = Mapping[str, PublishedRow]


def _rows(text: str) -> dict[str, PublishedRow]:
    """Read lines of the form ``name | seeds | average cell cell …``; ``-`` is no number."""
    found = {}
    for line in text.strip().splitlines():
        name, seeds, cells = (part.strip() for part in line.split("|"))
        average, *numbers = cells.split()
        found[name] = PublishedRow(tuple(numbers), seeds or UNKNOWN, average)
    return found


#: Validation sets of GLUE. An asterisk: from a model trained on MNLI first.
TABLE_1: Mapping[str, Rows] = {
    BERT: _rows(
        """
        vanilla | best of 5 | 82.9 83.8 91.0 68.2 90.8 85.3 62.3 92.4 89.3
        R-Drop  | best of 5 | 84.1 85.5 91.4 71.1 92.0 87.3 62.6 93.0 89.6
        SAM     | best of 5 | 83.9 85.0 91.6 69.3 91.7 88.2 63.1 93.0 89.4
        δ-SAM   | best of 5 | 84.7 85.2 91.7 72.2 91.5 89.5 63.8 93.7 89.7
        """
    ),
    ROBERTA: _rows(
        """
        vanilla | median of 5 | 88.9 90.2 92.2 86.6 94.7 90.9 68.0 96.4 92.4
        R-Drop  | best of 5   | 89.7 90.9 92.5 88.4 95.2 91.4 70.0 96.9 92.5
        FreeLB  | median      | 89.8 90.6 92.6 88.1 95.0 91.4 71.1 96.7 92.7
        SMART   | best of 3   | -    91.1 92.4 92.0* 95.6 89.2* 70.6 96.9 92.8*
        R3F     | best of 10  | -    91.1 92.4 88.5 95.3 91.6 71.2 97.0 -
        SAM     | best of 5   | 89.6 91.0 92.3 88.5 95.0 91.4 69.2 96.7 92.4
        δ-SAM   | best of 5   | 90.1 91.1 92.5 89.2 95.1 92.2 71.1 96.9 92.7
        """
    ),
}

#: Spearman's correlation of sentence embeddings trained without labels. The cells of FreeLB with
#: Mirror-BERT have the mean 75.74; 75.71 is printed.
TABLE_2: Mapping[str, Rows] = {
    MIRROR_BERT: _rows(
        """
        vanilla       | mean of 5 | 74.85 67.87 80.98 71.84 81.58 74.41 77.78 69.53
        FreeLB        | mean of 5 | 75.71 69.78 80.81 72.87 82.55 74.77 79.01 70.40
        R3F           | mean of 5 | 75.27 68.58 80.93 72.51 81.97 75.47 77.62 69.79
        SAM           | mean of 5 | 75.50 68.37 82.16 72.88 82.22 74.71 77.98 70.20
        δ-SAM         | mean of 5 | 75.72 68.44 82.30 73.12 82.27 75.12 78.83 69.94
        SAM + noise   | mean of 5 | 76.44 70.09 83.53 74.22 82.67 77.61 80.16 66.81
        δ-SAM + noise | mean of 5 | 76.71 69.73 83.73 74.58 83.01 77.72 79.08 69.11
        """
    ),
    MIRROR_ROBERTA: _rows(
        """
        vanilla       | mean of 5 | 74.98 64.49 81.69 73.32 79.78 77.49 78.53 69.56
        FreeLB        | mean of 5 | 75.73 65.52 82.41 74.00 80.72 78.60 79.06 69.81
        R3F           | mean of 5 | 75.32 64.58 82.12 73.62 80.27 77.90 78.66 70.13
        SAM           | mean of 5 | 75.18 64.86 81.96 73.56 79.82 77.06 78.83 70.21
        δ-SAM         | mean of 5 | 75.27 64.97 81.89 73.46 80.12 77.62 78.96 69.89
        SAM + noise   | mean of 5 | 75.90 66.65 82.52 74.10 80.81 78.47 79.02 69.71
        δ-SAM + noise | mean of 5 | 76.31 66.94 82.86 74.46 81.13 78.91 79.52 70.32
        """
    ),
}

#: ROUGE-1, ROUGE-2 and ROUGE-L on CNN/DailyMail, F-measure.
TABLE_3: Rows = {
    "BART (Lewis et al. 2020)": PublishedRow(
        ("44.16", "21.28", "40.90"),
        scorer="ROUGE-1.5.5 -m by files2rouge, CoreNLP's PTB tokens",
        hardware="8 V100, 32 GB",
        hours="about 5",
    ),
    "PEGASUS (Zhang et al. 2020)": PublishedRow(("44.17", "21.47", "41.11")),
    "BART + R3F (Aghajanyan et al. 2020)": PublishedRow(("44.38", "21.53", "41.17")),
    "BART + R-Drop (Liang et al. 2021)": PublishedRow(
        ("44.51", "21.58", "41.24"),
        scorer="files2rouge, on raw text by its README",
        hardware="4 RTX 3090",
    ),
    "BART + δ-SAM (Zhou et al. 2022)": PublishedRow(("44.70", "21.54", "41.81")),
}
TABLE_3_PAIRS = 11_490
TABLE_3_NOTE = (
    "Published rows as in Table 3 of Zhou et al. 2022, which prints 21.41 for PEGASUS's "
    "ROUGE-2; PEGASUS's own paper has 21.47."
)

#: MRPC and RTE: adversarial risk, its mean over 5 seeds; then accuracy, median/best of 5.
TABLE_4_TASKS = ("mrpc", "rte")
TABLE_4: Mapping[str, Rows] = {
    BERT: _rows(
        """
        vanilla      | | - 1.93 84.6/85.3 2.97 67.9/68.2
        SAM          | | - 0.62 86.8/88.2 0.78 68.6/69.3
        δ-SAM        | | - 0.59 87.5/89.5 0.75 69.3/72.2
        per-instance | | - 0.50 88.2/89.7 0.65 70.0/71.5
        """
    )
}

#: rho and eta, by model and task.
TABLE_5: Mapping[str, Mapping[str, tuple[float, float]]] = {
    model: {
        task: (0.01 if task == "sts-b" else rho, 5e-4 if task == "rte" else 1e-4) for task in TASKS
    }
    for model, rho in ((BERT, 0.05), (ROBERTA, 0.02))
}

#: Minutes on one RTX 2080.
TABLE_6: Mapping[str, Rows] = {
    BERT: _rows(
        """
        SAM          | | - 1240 818 15 349 12 25 118 26
        δ-SAM        | | - 1350 995 16 450 15 25 132 31
        per-instance | | - - - 87 - 105 - - -
        """
    ),
    ROBERTA: _rows(
        """
        SAM   | | - 1056 2591 33 1402 30 38 285 42
        δ-SAM | | - 1699 2963 36 1425 35 45 325 58
        """
    ),
}


def published(model: str, task: str) -> dict[str, str]:
    """Return one column of Table 1, without the rows that have no number in it.

    Example:
        >>> published("bert_base", "rte")["δ-SAM"]
        '72.2'
    """
    column = TASKS.index(task)
    cells = {name: row.cells[column] for name, row in TABLE_1[model].items()}
    return {name: cell for name, cell in cells.items() if cell != "-"}
