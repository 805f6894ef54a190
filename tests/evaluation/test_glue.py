import pytest

from deltasam_fairseq import __version__
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.glue import TASKS, glue_scores
from deltasam_fairseq.evaluation.lines import read_numbers
from deltasam_fairseq.evaluation.metrics import CLASS_METRICS, NUMBER_METRICS


def test_the_first_metric_is_the_papers() -> None:
    first = {task.name: task.metrics[0] for task in TASKS.values()}
    others = {name: metric for name, metric in first.items() if metric != "accuracy"}
    assert others == {"CoLA": "matthews", "STS-B": "pearson"}
    assert len(first) == 10


def test_the_positive_class_of_f1_and_matthews_is_there() -> None:
    tasks = [task for task in TASKS.values() if {"f1", "matthews"} & {*task.metrics}]
    assert {task.name: task.classes for task in tasks} == dict.fromkeys(
        ("CoLA", "MRPC", "QQP"), ("0", "1")
    )


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_task_scores_perfect_predictions_100(task) -> None:
    known = CLASS_METRICS if task.classes else NUMBER_METRICS
    assert set(task.metrics) <= set(known)
    lines = [*task.classes, task.classes[0]] if task.classes else ["0", "2.5", "5.0"]
    report = glue_scores(task.name.upper(), lines, lines)
    assert report.scores == pytest.approx(dict.fromkeys(task.metrics, 100))
    assert report.n == len(lines)
    if task.classes:
        numbers = [str(task.classes.index(line)) for line in lines]
        assert glue_scores(task.name, numbers, numbers).scores == report.scores


def test_the_report_is_one_flat_object() -> None:
    report = glue_scores("qqp", ["1", "0", "1", "1"], ["1", "0", "0", "0"])
    assert report.as_json() == {
        "accuracy": 50,
        "f1": 50,
        "paper_metric": "accuracy",
        "n": 4,
        "signature": f"glue|task:QQP|metrics:accuracy,f1|paper:accuracy|version:{__version__}",
    }


def test_one_class_alone_is_defined_and_one_number_alone_is_not() -> None:
    assert glue_scores("cola", ["1", "1"], ["1", "0"]).scores == {"matthews": 0, "accuracy": 50}
    with pytest.raises(UserError, match="all 2 predictions are 1: a correlation"):
        glue_scores("sts-b", ["1", "1.0"], ["1", "0"])
    report = glue_scores("sts-b", ["1", "1.0"], ["1", "0"], constant=0.0)
    assert report.scores == {"pearson": 0, "spearman": 0}
    with pytest.raises(UserError, match="all 2 gold scores are 1"):
        glue_scores("sts-b", ["1", "0"], ["1", "1"], constant=0.0)
    assert glue_scores("sts-b", ["1", "0"], ["1", "0"], constant=0.0).scores["pearson"] == 100


@pytest.mark.parametrize(
    ("task", "predictions", "labels", "message"),
    [
        ("sst2", ["1"], ["1"], "unknown GLUE task 'sst2'; did you mean 'sst-2'\\? Known: cola, mn"),
        ("rte", ["1"], ["1", "0"], "^1 predictions but 2 labels; line n"),
        ("rte", [], [], "nothing to score: no predictions and no labels"),
        (
            "rte",
            ["1", ""],
            ["1", "0"],
            "^line 2: the prediction is ''; RTE has the classes not_entailment, entail",
        ),
        (
            "rte",
            ["1", "1"],
            ["1", "2"],
            "^line 2: the label is '2'; RTE .* or, in both files, 0 to 1",
        ),
        (
            "mnli",
            ["1"],
            ["neutral"],
            "^line 1: the prediction is '1'; MNLI .* in both files, 0 to 2",
        ),
        (
            "mnli",
            ["neutral"],
            ["1"],
            "^line 1: the prediction is 'neutral'; MNLI .* in both files, 0 to 2",
        ),
        (
            "sts-b",
            ["1", "high"],
            ["1", "2"],
            "^line 2: the prediction is 'high', not a finite number",
        ),
        ("sts-b", ["1", "2"], ["1", "nan"], "^line 2: the label is 'nan', not a finite number"),
        ("sts-b", ["1", "2"], ["", "2"], "^line 1: the label is '', not a finite number"),
    ],
)
def test_input_that_cannot_be_scored(
    task: str, predictions: list[str], labels: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        glue_scores(task, predictions, labels)


def test_numbers_in_all_spellings() -> None:
    assert read_numbers(["1", " 2.5 ", "-3e-1"], "line") == [1, 2.5, -0.3]
