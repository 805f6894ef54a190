"""The eight GLUE tasks of the paper, in the layout of the official archives."""

from __future__ import annotations

from deltasam_fairseq.data.sentence_task import Layout, SentenceTask, SplitFile
from deltasam_fairseq.evaluation.glue import TASKS

_PAIR = ("sentence1", "sentence2")


def _task(name: str, *splits: SplitFile, label_scale: float = 1.0) -> SentenceTask:
    """Describe a task; how it is scored stands in one place, beside the metrics."""
    scored = TASKS[name.lower()]
    return SentenceTask(name, name, splits, scored.classes, scored.metrics, label_scale)


def _splits(
    name: str, texts: tuple[str, ...], label: str, counts: tuple[tuple[int, ...] | int, int, int]
) -> tuple[SplitFile, ...]:
    """Describe one file per split, each with a header."""
    train, valid, test = (count if isinstance(count, tuple) else (count,) for count in counts)
    with_label = Layout(True, texts, label)
    return (
        SplitFile("train", "train.tsv", with_label, train),
        SplitFile("valid", "dev.tsv", with_label, valid),
        SplitFile("test", "test.tsv", Layout(True, texts), test, submission=f"{name}.tsv"),
    )


_COLA = Layout(header=False, texts=(3,), label=1, columns=4)
_MNLI, _MNLI_TEST = Layout(True, _PAIR, "gold_label"), Layout(True, _PAIR)
_STRINGS = ("#1 String", "#2 String")

#: By name in lower case. The numbers of rows are those of the official archives; two of them
#: are in use for the training set of QQP.
GLUE = {
    task.name.lower(): task
    for task in (
        _task(
            "MNLI",
            SplitFile("train", "train.tsv", _MNLI, (392702,)),
            SplitFile("valid", "dev_matched.tsv", _MNLI, (9815,)),
            SplitFile("valid1", "dev_mismatched.tsv", _MNLI, (9832,)),
            SplitFile("test", "test_matched.tsv", _MNLI_TEST, (9796,), "MNLI-m.tsv"),
            SplitFile("test1", "test_mismatched.tsv", _MNLI_TEST, (9847,), "MNLI-mm.tsv"),
        ),
        _task(
            "QQP",
            *_splits(
                "QQP",
                ("question1", "question2"),
                "is_duplicate",
                ((363846, 363849), 40430, 390965),
            ),
        ),
        _task("RTE", *_splits("RTE", _PAIR, "label", (2490, 277, 3000))),
        _task("QNLI", *_splits("QNLI", ("question", "sentence"), "label", (104743, 5463, 5463))),
        _task("MRPC", *_splits("MRPC", _STRINGS, "Quality", (3668, 408, 1725))),
        _task(
            "CoLA",
            SplitFile("train", "train.tsv", _COLA, (8551,)),
            SplitFile("valid", "dev.tsv", _COLA, (1043,)),
            SplitFile("test", "test.tsv", Layout(True, ("sentence",)), (1063,), "CoLA.tsv"),
        ),
        _task("SST-2", *_splits("SST-2", ("sentence",), "label", (67349, 872, 1821))),
        _task("STS-B", *_splits("STS-B", _PAIR, "score", (5749, 1500, 1379)), label_scale=5.0),
    )
}
