from typing import Any

import pytest
import sacrebleu

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.bleu import TOKENIZERS, bleu_scores

HYPOTHESES = ["The cat sat on the mat.", "A dog barks, loudly!", ""]
REFERENCES = ["The cat sat on a mat.", "A dog barked loudly.", "Nothing here."]
OTHERS = ["A cat was on the mat.", "The dog barks.", "Nothing."]


@pytest.mark.parametrize(
    ("references", "meant", "nrefs"),
    [
        ([REFERENCES], [REFERENCES], "1"),
        ([REFERENCES, OTHERS], [REFERENCES, OTHERS], "2"),
        # A blank line is an absent reference, which sacreBLEU calls None, and not an empty one.
        ([REFERENCES, [OTHERS[0], "", " \t"]], [REFERENCES, [OTHERS[0], None, None]], "var"),
        (
            [["", *REFERENCES[1:]], [*OTHERS[:2], "\u3000"]],
            [[None, *REFERENCES[1:]], [*OTHERS[:2], None]],
            "var",
        ),
        # One reference for every line, from one file or the other.
        ([["", *REFERENCES[1:]], [OTHERS[0], "", ""]], [[OTHERS[0], *REFERENCES[1:]]], "1"),
    ],
)
@pytest.mark.parametrize("lowercase", [False, True])
def test_the_scores_are_sacrebleus(
    references: list[list[str]], meant: Any, nrefs: str, lowercase: bool
) -> None:
    found = bleu_scores(HYPOTHESES, references, lowercase=lowercase).as_json()
    bleu = sacrebleu.corpus_bleu(HYPOTHESES, meant, lowercase=lowercase)
    chrf = sacrebleu.CHRF(lowercase=lowercase).corpus_score(HYPOTHESES, meant)
    ter = sacrebleu.corpus_ter(HYPOTHESES, meant, case_sensitive=not lowercase)
    assert [found[name]["score"] for name in ("bleu", "chrf", "ter")] == [
        bleu.score,
        chrf.score,
        ter.score,
    ]
    assert found["n"] == 3
    case = "lc" if lowercase else "mixed"
    for name in ("bleu", "chrf", "ter"):
        signature = found[name]["signature"]
        assert signature.startswith(f"{name}|nrefs:{nrefs}|case:{case}|")
        assert signature.endswith(f"|version:{sacrebleu.__version__}")


def test_an_absent_reference_counts_like_a_copy_of_one_that_is_there() -> None:
    # n-grams are clipped by the best reference, lengths taken from the closest or the mean:
    # a copy changes none of them. An empty reference changed BLEU, by its length, and TER.
    gaps, copies = [OTHERS[0], "", ""], [OTHERS[0], *REFERENCES[1:]]
    absent, copied = (bleu_scores(HYPOTHESES, [REFERENCES, one]).scores for one in (gaps, copies))
    for name, found in absent.items():
        assert found.score == pytest.approx(copied[name].score, abs=1e-12)


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
        (["a"], [["a"]], "moses", "unknown tokenizer 'moses'. Known: 13a, char"),
    ],
)
def test_input_that_cannot_be_scored(
    hypotheses: list[str], references: list[list[str]], tokenizer: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        bleu_scores(hypotheses, references, tokenizer=tokenizer)
