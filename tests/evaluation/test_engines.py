import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.engines import (
    PROGRAMS,
    VARIANTS,
    Engine,
    Tokenizer155,
    make_engine,
    rouge_155_engine,
    rouge_score_engine,
)
from deltasam_fairseq.evaluation.stemmer155 import WORDNET_2_0

PAIRS = Path(__file__).parent / "golden" / "rouge155_pairs.jsonl"
PERL = {"1": "rouge1", "2": "rouge2", "L": "rougeLsum"}

ENGINES = {
    "rouge-score": rouge_score_engine(stemmer=True),
    "rouge-1.5.5": rouge_155_engine(stemmer=True),
}
texts = st.lists(
    st.sampled_from(["a", "b", "cats", "cat", "children", "child", "\n", "é", "-", "\u2028", "\0"]),
    max_size=9,
).map(" ".join)


@pytest.mark.parametrize("line", PAIRS.read_text().splitlines())
@pytest.mark.parametrize("stemmer", [True, False])
def test_pairs_of_the_perl_program(line: str, stemmer: bool) -> None:
    pair = json.loads(line)
    found = rouge_155_engine(stemmer=stemmer).score(pair["hypothesis"], pair["reference"])
    perl = pair["stemmed" if stemmer else "unstemmed"]
    assert {name: list(found[ours]) for name, ours in PERL.items()} == perl
    assert found["rougeL"] == found["rougeLsum"]


@given(hypothesis=texts, reference=texts)
def test_rouge_score_is_passed_on_as_it_is(hypothesis: str, reference: str) -> None:
    expected = RougeScorer(VARIANTS, use_stemmer=True).score(reference, hypothesis)
    assert ENGINES["rouge-score"].score(hypothesis, reference) == expected


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@given(hypothesis=texts, reference=texts)
def test_what_holds_of_every_pair(engine: Engine, hypothesis: str, reference: str) -> None:
    found, swapped = engine.score(hypothesis, reference), engine.score(reference, hypothesis)
    for name in VARIANTS:
        precision, recall, fmeasure = found[name]
        assert 0 <= min(precision, recall) <= fmeasure + 2e-5
        assert fmeasure <= max(precision, recall) + 2e-5 <= 1 + 2e-5
        if name in {"rouge1", "rouge2"}:
            assert swapped[name] == (recall, precision, fmeasure)
    same = engine.score(reference, reference)
    words = Tokenizer155(None).tokenize(reference)
    assert same["rouge1"] == same["rougeLsum"] == ((1, 1, 1) if words else (0, 0, 0))


def test_only_ascii_letters_become_lower_case() -> None:
    # In Python "K".lower() is "k" for the Kelvin sign too; the Perl program reads bytes.
    assert Tokenizer155(None).tokenize("\u212aelvin \u0130s A1") == ["elvin", "s", "a1"]


def test_the_list_of_exceptions_belongs_to_the_signature(tmp_path: Path) -> None:
    with_list, without = (
        rouge_155_engine(stemmer=True),
        rouge_155_engine(stemmer=True, exceptions=None),
    )
    assert with_list.signature["exceptions"].startswith("5930-")
    assert without.signature["exceptions"] == "none"
    assert "exceptions" not in rouge_155_engine(stemmer=False).signature
    assert with_list.score("the children", "the child")["rouge1"][0] == 1
    assert without.score("the children", "the child")["rouge1"][0] == 0.5


@pytest.mark.parametrize("name", PROGRAMS)
def test_engines_by_name(name: str) -> None:
    assert make_engine(name, stemmer=False, exceptions=WORDNET_2_0).signature == {"stemmer": "no"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pyrouge", "unknown program 'pyrouge'. Known: rouge-1.5.5, rouge-s"),
        ("rouge-score", "rouge-score has no exception lists; choose others with --like rouge-1.5"),
    ],
)
def test_engines_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_engine(name, stemmer=True, exceptions=None)
