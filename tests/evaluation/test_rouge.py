import json
from importlib import metadata
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.resampling import Resampling
from deltasam_fairseq.evaluation.rouge import MEASURES, SPLITTERS, VARIANTS, rouge_scores


def fmeasures(hypothesis: str, reference: str, **settings: object) -> dict[str, float]:
    report = rouge_scores([hypothesis], [reference], **settings)  # type: ignore[arg-type]
    return {name: score.fmeasure / 100 for name, score in report.scores.items()}


@pytest.mark.parametrize(
    ("hypothesis", "reference", "expected"),
    [
        # Lin 2004, section 3.1: S1 against S2 and S3; ROUGE-L tells them apart, ROUGE-2 does not
        ("police kill the gunman", "police killed the gunman", (3 / 4, 1 / 3, 3 / 4)),
        ("the gunman kill police", "police killed the gunman", (3 / 4, 1 / 3, 1 / 2)),
        # three of three words and of four; two of two word pairs and of three
        ("a b c", "a b c d", (6 / 7, 4 / 5, 6 / 7)),
        # repeated words count as often as the other text has them
        ("a a a", "a b", (2 * 1 / 5, 0, 2 * 1 / 5)),
        ("A-B c_d!", "a b C d", (1, 1, 1)),
        ("", "a b", (0, 0, 0)),
        ("x", "a b", (0, 0, 0)),
    ],
)
def test_scores_that_can_be_counted_by_hand(
    hypothesis: str, reference: str, expected: tuple[float, float, float]
) -> None:
    found = fmeasures(hypothesis, reference, stemmer=False)
    assert (found["rouge1"], found["rouge2"], found["rougeL"]) == pytest.approx(expected)
    assert found["rougeLsum"] == pytest.approx(found["rougeL"])


def test_precision_belongs_to_the_hypothesis() -> None:
    score = rouge_scores(["a b c d"], ["a b"]).scores["rouge1"]
    assert (score.precision, score.recall) == pytest.approx((50, 100))


def test_the_stemmer_joins_forms_of_a_word() -> None:
    assert fmeasures("computes sums", "computing sum", stemmer=True)["rouge2"] == pytest.approx(1)
    assert fmeasures("computes sums", "computing sum", stemmer=False)["rouge1"] == 0


def test_lsum_is_a_union_over_sentences() -> None:
    # Lin 2004, section 3.2: the union of w1 w2 and w1 w3 w5 covers 4 of 5 reference words
    found = rouge_scores(["w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5"], ["w1 w2 w3 w4 w5"], stemmer=False)
    assert found.scores["rougeLsum"].recall == pytest.approx(80)


def test_sentences_can_be_told_apart_within_a_line() -> None:
    hypothesis, reference = "b one. a two!", "a two! b one."
    assert fmeasures(hypothesis, reference)["rougeLsum"] == pytest.approx(1 / 2)
    assert fmeasures(hypothesis, reference, split="sentences")["rougeLsum"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("hypothesis", "reference", "settings", "sides"),
    [
        ("Bob one. Ann two.", "Ann two. Bob one.", {}, ("hypotheses", "references")),
        ("Bob one. Ann two.", "Ann two.\nBob one.", {}, ("hypotheses",)),
        ("Bob one.", "Ann two. Bob one.", {"like": "rouge-1.5.5"}, ("references",)),
        # a splitter for other text finds none of the ends
        ("Bob one.", "Ann two. Bob one.", {"split": "ptb"}, ("references",)),
        ("Bob one.", "Ann two. Bob one.", {"split": "sentences"}, ()),
        ("Bob one .", "Ann two . Bob one .", {"split": "ptb"}, ()),
        ("Bob one .", "Ann two . Bob one .", {"split": "files2rouge"}, ()),
        ("Bob one", "Mr. Bob and Gov. Ann one.", {}, ()),
    ],
)
def test_a_report_says_that_sentences_were_not_told_apart(
    hypothesis: str, reference: str, settings: dict[str, Any], sides: tuple[str, ...]
) -> None:
    report = rouge_scores([hypothesis], [reference], **settings)
    assert report.unsplit == sides
    assert report.warning("--split").startswith(f"many {' and '.join(sides)} have" if sides else "")
    assert ("--split sentences" in report.warning("--split")) == bool(sides)


def test_the_mean_is_over_pairs_and_an_empty_hypothesis_counts() -> None:
    report = rouge_scores(["a b", "", "a"], ["a b", "a b", "a b"])
    assert report.n == 3
    assert report.scores["rouge1"].fmeasure == pytest.approx(100 * (1 + 0 + 2 / 3) / 3)


def test_the_report_is_one_flat_object_with_a_signature() -> None:
    found = json.loads(json.dumps(rouge_scores(["a"], ["a"], stemmer=False).as_json()))
    assert set(found) == {*VARIANTS, "n", "signature"}
    assert set(found["rougeL"]) == {"precision", "recall", "fmeasure"}
    assert found["signature"].startswith("rouge|tool:rouge-score|version:0.")
    assert "|like:rouge-score|stemmer:no|split:newline|tok:none|lang:ascii|" in found["signature"]
    for package in ("nltk", "rouge-score"):
        assert f":{metadata.version(package)}|" in found["signature"]


def test_every_setting_is_in_the_signature() -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"stemmer": False},
        *({"split": split} for split in SPLITTERS if split not in {"newline", "nltk"}),
        {"tokenization": "ptb"},
        {"like": "rouge-1.5.5"},
        {"like": "rouge-1.5.5", "stemmer": False},
        {"like": "rouge-1.5.5", "exceptions": None},
    ]
    assert len({rouge_scores(["a"], ["a"], **one).signature for one in settings}) == len(settings)


def test_the_pairs_are_there_and_their_mean_is_the_score() -> None:
    report = rouge_scores(["a b", "", "a"], ["a b", "a b", "a b"])
    examples = report.examples()
    assert [example["rouge1"]["recall"] for example in examples] == [100, 0, 50]
    for name, score in report.scores.items():
        for measure in MEASURES:
            assert getattr(score, measure) == fmean(one[name][measure] for one in examples)


def test_an_interval_holds_the_mean_and_is_a_point_for_equal_pairs() -> None:
    report = rouge_scores(["a b", "a", "c"] * 9, ["a b"] * 27)
    for name, measures in report.intervals(Resampling(200)).items():
        for measure, (low, high) in measures.items():
            assert low <= getattr(report.scores[name], measure) <= high
    assert report.intervals(Resampling(200))["rouge1"]["fmeasure"][0] < 60
    same = rouge_scores(["a b"] * 3, ["a b c"] * 3)
    low, high = same.intervals(Resampling(10))["rouge1"]["recall"]
    assert low == pytest.approx(high) == pytest.approx(200 / 3)


def test_two_systems_are_compared_pair_by_pair() -> None:
    references = ["a b c d"] * 12
    good, bad = (rouge_scores([text] * 12, references) for text in ("a b c d", "a x c y"))
    found = good.compare(bad, Resampling(500))["rouge1"]["fmeasure"]
    assert found["difference"] == pytest.approx(50)
    assert found["p"] < 0.01
    assert good.compare(good, Resampling(50))["rougeL"]["recall"] == {"difference": 0, "p": 1}


def test_reports_that_cannot_be_compared() -> None:
    one = rouge_scores(["a"], ["a"])
    for other in (rouge_scores(["a"], ["a"], stemmer=False), rouge_scores(["a"] * 2, ["a"] * 2)):
        with pytest.raises(UserError, match="not comparable: 1 pairs, rouge"):
            one.compare(other, Resampling(10))


@pytest.mark.parametrize(
    ("hypotheses", "references", "split", "message"),
    [
        (["a"], ["a", "b"], "newline", "^1 hypotheses but 2 references; line n"),
        ([], [], "newline", "nothing to score"),
        (
            ["a", "b"],
            ["a", " "],
            "newline",
            "^line 2: the reference is empty; remove it and its hyp",
        ),
        (["a"], ["a"], "perl", "unknown split 'perl'. Known: files2rouge, newline"),
    ],
)
def test_input_that_cannot_be_scored(
    hypotheses: list[str], references: list[str], split: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        rouge_scores(hypotheses, references, split=split)


@pytest.mark.parametrize("like", ["rouge-1.5.5", "rouge-score"])
def test_against_published_scores_of_the_perl_program(data_folder: Path, like: str) -> None:
    lines = (data_folder / "realsumm" / "rouge155_scored.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert len(entries) == 376
    report = rouge_scores(
        ["\n".join(entry["hyp_sents"]) for entry in entries],
        ["\n".join(entry["ref_sents"]) for entry in entries],
        like=like,
    )
    largest: dict[str, float] = {}
    for (ours, perl), (measure, suffix) in product(
        (("rouge1", "rouge_1"), ("rouge2", "rouge_2"), ("rougeLsum", "rouge_l")),
        (("precision", "precision"), ("recall", "recall"), ("fmeasure", "f_score")),
    ):
        largest[f"{ours}.{measure}"] = max(
            abs(example[ours][measure] / 100 - entry["published"][f"{perl}_{suffix}"])
            for example, entry in zip(report.examples(), entries, strict=True)
        )
    assert len(largest) == 9
    if like == "rouge-1.5.5":
        assert max(largest.values()) < 1e-9  # five decimals each, and the same five
    else:
        assert min(largest.values()) > 1e-3  # the test can tell the two programs apart
