"""From logits to labels, scores and submissions; the process that predicts is replaced."""

import json
from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.data import process
from deltasam_fairseq.data.glue import GLUE
from deltasam_fairseq.data.labelled_sentences import PreparedSentences
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import write_lines
from deltasam_fairseq.recipes import classification
from deltasam_fairseq.recipes.classification import classify, to_labels
from deltasam_fairseq.recipes.run_folder import RunFolder

LOGITS = {"ids": [2, 0, 1], "logits": [[0.0, 1.0], [2.0, 1.0], [0.0, 3.0]]}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    run.best_checkpoint.write_bytes(b"best")

    def predict(command: list[str], log: Path, **options: Any) -> int:
        log.write_text("it said\nno\n")
        Path(command[command.index("--out") + 1]).write_text(json.dumps(LOGITS))
        return int("--cpu" in command)

    monkeypatch.setattr(process, "run_logged", predict)
    monkeypatch.setattr(classification, "require_fairseq", lambda: None)
    return run


def data(folder: Path, rows: int, *labels: str) -> PreparedSentences:
    found = PreparedSentences(folder, {"rows": {"valid": rows, "test": rows}, "sha256": "d"})
    if labels:
        write_lines(found.raw("valid", "label"), list(labels))
    return found


def test_scores_at_full_precision_in_the_order_of_the_data(tmp_path: Path, run: RunFolder) -> None:
    found = data(tmp_path, 3, "not_entailment", "entailment", "not_entailment")
    result = classify(GLUE["rte"], found, run, "valid", say=lambda line: None)
    assert result.predictions == ["not_entailment", "entailment", "entailment"]
    scores = json.loads((result.folder / "scores.json").read_text())
    assert scores["accuracy"] == 100 * (2 / 3)
    assert (scores["n"], scores["split"], scores["data_sha256"]) == (3, "valid", "d")
    assert scores["paper_metric"] == "accuracy"


def test_a_regression_that_collapsed_has_no_correlation(
    tmp_path: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOGITS, "logits", [[-0.2], [-0.1], [-0.3]])
    found = data(tmp_path, 3, "1.0", "2.0", "5.0")
    scores = classify(GLUE["sts-b"], found, run, "valid", say=lambda line: None).scores
    assert scores is not None
    assert (scores["pearson"], scores["spearman"]) == (0.0, 0.0)


def test_regressions_are_scaled_back_and_stay_in_their_range() -> None:
    logits = {"ids": [0, 1, 2], "logits": [[0.5], [1.2], [-0.1]]}
    assert to_labels(GLUE["sts-b"], logits) == ["2.5", "5.0", "0.0"]


@pytest.mark.parametrize(
    ("rows", "split", "cpu", "message"),
    [
        (3, "valid1", False, "has no split 'valid1'; it has valid, test"),
        (4, "valid", False, "3 predictions for 4 rows"),
        (3, "valid", True, "prediction ended with status 1; the end of"),
        (3, "test", False, "whose test set has 3000"),
    ],
)
def test_what_goes_wrong_is_said(
    rows: int, split: str, cpu: bool, message: str, tmp_path: Path, run: RunFolder
) -> None:
    with pytest.raises(UserError, match=message):
        classify(GLUE["rte"], data(tmp_path, rows), run, split, cpu=cpu, say=lambda line: None)


def test_without_a_checkpoint(tmp_path: Path, run: RunFolder) -> None:
    run.best_checkpoint.unlink()
    with pytest.raises(UserError, match="train first"):
        classify(GLUE["rte"], data(tmp_path, 3), run, "valid")


@pytest.mark.parametrize("task", ["rte", "sts-b"])
def test_a_model_that_diverged_predicts_nothing(task: str) -> None:
    logits = [[0.5], [float("nan")]] if task == "sts-b" else [[0.5, 1.0], [float("nan"), 1.0]]
    with pytest.raises(UserError, match="the logits of line 2 are not finite; the training div"):
        to_labels(GLUE[task], {"ids": [0, 1], "logits": logits})
