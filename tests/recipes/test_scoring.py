from pathlib import Path

import pytest

from deltasam_fairseq.recipes.generation import Generated
from deltasam_fairseq.recipes.scoring import read_scores, score_run
from tests.support.prepared_data import TARGETS, finished_data


def test_a_model_is_scored_beside_two_baselines(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "generate-test"
    folder.mkdir(parents=True)
    facts = {"checkpoint_sha256": "c", "data_sha256": "d", "flags": ["--beam", "3"]}
    generated = Generated(folder, TARGETS, TARGETS, facts)
    data = finished_data(tmp_path / "data")
    scores = score_run(data, generated, "test", say=lambda line: None)
    assert read_scores(tmp_path / "run", "test") == scores
    assert scores["n"] == 2
    systems = scores["systems"]
    assert list(systems) == ["model", "lead (first 4 words)", "most frequent target"]
    assert systems["model"]["rougeL"]["fmeasure"] == pytest.approx(100)
    # "Get the leaf of a tree." for both: right once
    assert systems["most frequent target"]["rouge1"]["fmeasure"] == pytest.approx(50)
    # "def get leaf (tree):" has three of four words, the reference six; "def add (a, b):" has one
    # of four, "Add two numbers." three
    lead = (2 * 3 / (4 + 6) + 2 * 1 / (4 + 3)) / 2
    assert systems["lead (first 4 words)"]["rouge1"]["fmeasure"] == pytest.approx(100 * lead)


@pytest.mark.parametrize(("rouge", "warnings"), [({}, 1), ({"split": "sentences"}, 0)])
def test_sentences_that_nobody_told_apart_are_warned_of_once(
    rouge: dict[str, str], warnings: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run" / "generate-test"
    folder.mkdir(parents=True)
    texts = ["It was late. They won."] * 2
    facts = {"checkpoint_sha256": "c", "data_sha256": "d", "flags": []}
    data = finished_data(tmp_path / "data")
    score_run(data, Generated(folder, texts, texts, facts), "test", rouge=rouge)
    assert capsys.readouterr().err.count("--sentence-split sentences") == warnings


def test_a_run_that_was_not_evaluated_has_no_scores(tmp_path: Path) -> None:
    assert read_scores(tmp_path, "test") is None
