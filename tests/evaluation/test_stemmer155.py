from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.stemmer155 import (
    WORDNET_2_0,
    Stemmer155,
    porter,
    read_exceptions,
)

STEMS = Path(__file__).parent / "golden" / "rouge155_stems.tsv"


def test_stems_are_those_of_the_perl_program() -> None:
    pairs = [line.split("\t") for line in STEMS.read_text().splitlines()]
    assert len(pairs) > 300
    assert {word: porter(word) for word, _ in pairs} == dict(pairs)


def test_one_word_can_lose_two_suffixes_in_step_4() -> None:
    # Porter's own rules, and NLTK's, stop at "treatment" -> "treatment" less one suffix.
    assert porter("governmentable") == porter("government") == "govern"


@given(st.text(alphabet="abcdeinlostyz1", min_size=3, max_size=12))
def test_a_stem_is_never_longer_nor_empty(word: str) -> None:
    assert 0 < len(porter(word)) <= len(word)


def test_exceptions_come_first_and_short_words_stay() -> None:
    stemmer = Stemmer155({"ran": "run", "gone": "go", "geese": "goose"})
    assert [stemmer.stem(word) for word in ("ran", "gone", "geese", "going")] == [
        "ran",
        "go",
        "goose",
        "go",
    ]


def test_wordnet_2_0_comes_along_whole_and_with_its_licence() -> None:
    exceptions = read_exceptions(WORDNET_2_0)
    assert len(exceptions) == 5930
    # in two lists each: adv after adj, verb after noun
    assert {word: exceptions[word] for word in ("better", "best", "is", "testes")} == {
        "better": "well",
        "best": "well",
        "is": "be",
        "testes": "testes",
    }
    assert "WordNet 2.0 Copyright 2003 by Princeton" in (WORDNET_2_0 / "LICENSE").read_text()


def test_lists_of_another_wordnet(tmp_path: Path) -> None:
    for name, text in (("adj", "worse bad\n"), ("adv", ""), ("noun", "men man\n\nlone\n")):
        (tmp_path / f"{name}.exc").write_text(text)
    (tmp_path / "verb.exc").write_text("axes axe ax\n")
    assert read_exceptions(tmp_path) == {"worse": "bad", "men": "man", "axes": "axe"}


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="adj.exc: no such file; the folder of a WordNet's"):
        read_exceptions(tmp_path)
