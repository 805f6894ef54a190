import json
from pathlib import Path
from statistics import fmean

import pytest

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.rouge import SPLITTERS, VARIANTS, rouge_scores


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
    ("text", "lines"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("It is 3.5 m. now", ["It is 3.5 m.", "now"]),
        ("None", ["None"]),
    ],
)
def test_sentence_splitter(text: str, lines: list[str]) -> None:
    assert SPLITTERS["sentences"](text).split("\n") == lines


def test_the_mean_is_over_pairs_and_an_empty_hypothesis_counts() -> None:
    report = rouge_scores(["a b", "", "a"], ["a b", "a b", "a b"])
    assert report.n == 3
    assert report.scores["rouge1"].fmeasure == pytest.approx(100 * (1 + 0 + 2 / 3) / 3)


def test_the_report_is_one_flat_object_with_a_signature() -> None:
    found = json.loads(json.dumps(rouge_scores(["a"], ["a"], stemmer=False).as_json()))
    assert set(found) == {*VARIANTS, "n", "signature"}
    assert set(found["rougeL"]) == {"precision", "recall", "fmeasure"}
    assert found["signature"].startswith("rouge|tool:rouge-score|version:0.")
    assert "|stemmer:no|split:newline|" in found["signature"]
    signatures = {
        rouge_scores(["a"], ["a"], stemmer=stemmer, split=split).signature
        for stemmer in (True, False)
        for split in SPLITTERS
    }
    assert len(signatures) == 4


@pytest.mark.parametrize(
    ("hypotheses", "references", "split", "message"),
    [
        (["a"], ["a", "b"], "newline", "^1 hypotheses but 2 references; line n"),
        ([], [], "newline", "nothing to score"),
        (["a", "b"], ["a", " "], "newline", "reference 2 is empty; remove it and hypothesis 2"),
        (["a"], ["a"], "ptb", "unknown split 'ptb'; known: newline, sentences"),
    ],
)
def test_input_that_cannot_be_scored(
    hypotheses: list[str], references: list[str], split: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        rouge_scores(hypotheses, references, split=split)


def test_against_the_original_perl_program(data_folder: Path) -> None:
    lines = (data_folder / "realsumm" / "rouge155_scored.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines[:100]]
    found = [
        fmeasures("\n".join(entry["hyp_sents"]), "\n".join(entry["ref_sents"])) for entry in entries
    ]
    # ROUGE-1.5.5 knows irregular forms ("men", "won") from WordNet and so scores a little higher.
    for ours, perl, slack in (
        ("rouge1", "rouge_1_f_score", 0.005),
        ("rouge2", "rouge_2_f_score", 0.001),
        ("rougeLsum", "rouge_l_f_score", 0.005),
    ):
        differences = [
            entry["published"][perl] - scores[ours]
            for entry, scores in zip(entries, found, strict=True)
        ]
        assert sum(abs(difference) < 1e-5 for difference in differences) >= 70, ours
        assert abs(fmean(differences)) < slack, ours
