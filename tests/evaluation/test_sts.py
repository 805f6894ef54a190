from pathlib import Path

import pytest

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.metrics import spearman
from deltasam_fairseq.evaluation.sts import sts_scores

# Within a file the order is perfect; together it is not.
FILES = {"a": (["1", "2", "3"], ["0", "2", "5"]), "b": (["8", "9"], ["1", "4"])}


def test_the_score_is_over_the_pooled_pairs() -> None:
    report = sts_scores(FILES)
    assert report.spearman == pytest.approx(100 * spearman([1, 2, 3, 8, 9], [0, 2, 5, 1, 4]))
    assert report.n == 5
    found = report.as_json()
    assert found["files"] == {"a": {"spearman": 100, "n": 3}, "b": {"spearman": 100, "n": 2}}
    assert found["spearman_mean_of_files"] == found["spearman_weighted_mean_of_files"] == 100
    assert found["signature"].startswith("sts|metric:spearman|setting:all|files:2|unscored:0|")


def test_means_over_files_differ_from_each_other_and_from_it() -> None:
    files = {**FILES, "c": (["1", "2"], ["2", "1"])}
    found = sts_scores(files).as_json()
    assert found["spearman_mean_of_files"] == pytest.approx(100 / 3)
    assert found["spearman_weighted_mean_of_files"] == pytest.approx(100 * (3 + 2 - 2) / 7)
    assert found["spearman"] not in {100 / 3, 300 / 7}


def test_pairs_without_a_gold_score_are_left_out() -> None:
    report = sts_scores({"a": (["1", "99", "2", "3"], ["1", " ", "3", "2"])})
    assert (report.n, report.unscored) == (3, 1)
    assert report.spearman == pytest.approx(50)


def test_any_scale_of_similarity_will_do() -> None:
    scaled = {"a": (["0.01", "0.02", "0.03"], FILES["a"][1]), "b": (["0.08", "0.09"], ["1", "4"])}
    assert sts_scores(scaled).spearman == pytest.approx(sts_scores(FILES).spearman)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "nothing to score: no files"),
        ({**FILES, "c": (["1"], ["1", "2"])}, "^c: 1 predictions but 2 gold scores"),
        ({"c": (["1", ""], ["1", "2"])}, "^c: line 2: the prediction is '', not a finite number"),
        ({"c": (["1", "2"], ["1", "x"])}, "^c: line 2: the gold score is 'x', not a finite number"),
        ({"c": (["1", "1"], ["1", "2"])}, "^c: all 2 predictions are 1: a correlation"),
        ({"c": (["1", "1"], ["", ""])}, "^c: none of the 2 pairs has a gold score; leave the"),
    ],
)
def test_input_that_cannot_be_scored(files, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sts_scores(files)


def test_the_real_gold_files_of_a_year(data_folder: Path) -> None:
    folder = data_folder / "sts" / "STS" / "STS16-en-test"
    files = {}
    for path in sorted(folder.glob("STS.gs.*.txt")):
        if "ALL" not in path.name:
            gold = path.read_text(encoding="utf-8").split("\n")[:-1]
            files[path.name] = ([line or "0" for line in gold], gold)
    report = sts_scores(files)
    assert (len(files), report.n) == (5, 1186)
    assert report.unscored > 0
    assert report.spearman == pytest.approx(100)
