"""The eight GLUE tasks of the paper, in the layout of the official archives."""

from __future__ import annotations

from deltasam_fairseq.data.sentence_task import Layout, SentenceTask, SplitFile

_TWO = ("0", "1")
_PAIR = ("sentence1", "sentence2")
_NLI = ("entailment", "neutral", "contradiction")
_ENTAILMENT = ("not_entailment", "entailment")


def _task(
    name: str,
    texts: tuple[str, ...],
    label: str,
    counts: tuple[int | tuple[int, ...], int, int],
    *,
    classes: tuple[str, ...],
    metrics: tuple[str, ...] = ("accuracy",),
    label_scale: float = 1.0,
) -> SentenceTask:
    """Describe a task with one file per split, each with a header."""
    known = [count if isinstance(count, tuple) else (count,) for count in counts]
    with_label, without = Layout(True, texts, label), Layout(True, texts)
    splits = (
        SplitFile("train", "train.tsv", with_label, known[0]),
        SplitFile("valid", "dev.tsv", with_label, known[1]),
        SplitFile("test", "test.tsv", without, known[2], submission=f"{name}.tsv"),
    )
    return SentenceTask(name, name, splits, classes, metrics, label_scale)


_COLA = Layout(header=False, texts=(3,), label=1, columns=4)
_MNLI, _MNLI_TEST = Layout(True, _PAIR, "gold_label"), Layout(True, _PAIR)
_STRINGS = ("#1 String", "#2 String")

#: By name in lower case. The numbers of rows are those of the official archives; two of them
#: are in use for the training set of QQP.
GLUE = {
    task.name.lower(): task
    for task in (
        SentenceTask(
            "MNLI",
            "MNLI",
            (
                SplitFile("train", "train.tsv", _MNLI, (392702,)),
                SplitFile("valid", "dev_matched.tsv", _MNLI, (9815,)),
                SplitFile("valid1", "dev_mismatched.tsv", _MNLI, (9832,)),
                SplitFile("test", "test_matched.tsv", _MNLI_TEST, (9796,), "MNLI-m.tsv"),
                SplitFile("test1", "test_mismatched.tsv", _MNLI_TEST, (9847,), "MNLI-mm.tsv"),
            ),
            _NLI,
            ("accuracy",),
        ),
        _task(
            "QQP",
            ("question1", "question2"),
            "is_duplicate",
            ((363846, 363849), 40430, 390965),
            classes=_TWO,
            metrics=("accuracy", "f1"),
        ),
        _task("RTE", _PAIR, "label", (2490, 277, 3000), classes=_ENTAILMENT),
        _task("QNLI", ("question", "sentence"), "label", (104743, 5463, 5463), classes=_ENTAILMENT),
        _task(
            "MRPC",
            _STRINGS,
            "Quality",
            (3668, 408, 1725),
            classes=_TWO,
            metrics=("accuracy", "f1"),
        ),
        SentenceTask(
            "CoLA",
            "CoLA",
            (
                SplitFile("train", "train.tsv", _COLA, (8551,)),
                SplitFile("valid", "dev.tsv", _COLA, (1043,)),
                SplitFile("test", "test.tsv", Layout(True, ("sentence",)), (1063,), "CoLA.tsv"),
            ),
            _TWO,
            ("matthews", "accuracy"),
        ),
        _task("SST-2", ("sentence",), "label", (67349, 872, 1821), classes=_TWO),
        _task(
            "STS-B",
            _PAIR,
            "score",
            (5749, 1500, 1379),
            classes=(),
            metrics=("pearson", "spearman"),
            label_scale=5.0,
        ),
    )
}
