import pytest
import sacrebleu

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.bleu import TOKENIZERS, bleu_scores

HYPOTHESES = ["The cat sat on the mat.", "A dog barks, loudly!", ""]
REFERENCES = ["The cat sat on a mat.", "A dog barked loudly.", "Nothing here."]
OTHERS = ["A cat was on the mat.", "", "Nothing."]


def test_the_scores_are_sacrebleus() -> None:
    found = bleu_scores(HYPOTHESES, [REFERENCES, OTHERS]).as_json()
    streams = [REFERENCES, OTHERS]
    assert found["bleu"]["score"] == sacrebleu.corpus_bleu(HYPOTHESES, streams).score
    assert found["chrf"]["score"] == sacrebleu.corpus_chrf(HYPOTHESES, streams).score
    assert found["ter"]["score"] == sacrebleu.corpus_ter(HYPOTHESES, streams).score
    assert found["n"] == 3
    for name in ("bleu", "chrf", "ter"):
        signature = found[name]["signature"]
        assert signature.startswith(f"{name}|nrefs:2|case:mixed|")
        assert signature.endswith(f"|version:{sacrebleu.__version__}")


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_every_tokenizer_works_offline_and_is_in_the_signature(tokenizer: str) -> None:
    report = bleu_scores(REFERENCES, [REFERENCES], tokenizer=tokenizer)
    assert {name: found.score for name, found in report.scores.items()} == pytest.approx(
        {"bleu": 100, "chrf": 100, "ter": 0}
    )
    assert f"|tok:{tokenizer}|" in report.scores["bleu"].signature


def test_case_can_be_ignored_by_all_three() -> None:
    upper = [text.upper() for text in REFERENCES]
    scores = bleu_scores(upper, [REFERENCES], lowercase=True).scores
    assert [round(scores[name].score, 6) for name in ("bleu", "chrf", "ter")] == [100, 100, 0]
    assert all("|case:lc|" in found.signature for found in scores.values())
    assert bleu_scores(upper, [REFERENCES]).scores["ter"].score > 0


def test_nothing_but_empty_hypotheses_scores_zero() -> None:
    scores = bleu_scores(["", ""], [["a b", "c"]]).scores
    assert (scores["bleu"].score, scores["chrf"].score, scores["ter"].score) == (0, 0, 100)


@pytest.mark.parametrize(
    ("hypotheses", "references", "tokenizer", "message"),
    [
        (
            ["a"],
            [["a"], ["a", "b"]],
            "13a",
            "^1 hypotheses but 2 lines in reference file 2; line n",
        ),
        ([], [[]], "13a", "nothing to score"),
        (["a"], [], "13a", "nothing to score"),
        (
            ["a", "b"],
            [["a", " "], ["a", ""]],
            "13a",
            "^line 2: the reference is empty; remove it and its hyp",
        ),
        (["a"], [["a"]], "moses", "unknown tokenizer 'moses'; known: 13a, intl"),
    ],
)
def test_input_that_cannot_be_scored(
    hypotheses: list[str], references: list[list[str]], tokenizer: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        bleu_scores(hypotheses, references, tokenizer=tokenizer)
