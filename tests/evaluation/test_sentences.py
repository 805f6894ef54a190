import json
from pathlib import Path

import pytest

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.sentences import (
    SPLITTERS,
    TOKENIZATIONS,
    run_together,
    split_and_tokenize,
)


@pytest.mark.parametrize(
    ("split", "text", "lines"),
    [
        ("newline", "One. Two!\nThree", ["One. Two!", "Three"]),
        ("sentences", "One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("sentences", "It is 3.5 m. now", ["It is 3.5 m.", "now"]),
        ("sentences", "None", ["None"]),
        ("ptb", "one . two ! three ? four", ["one .", "two !", "three ?", "four"]),
        ("ptb", "`` one . '' two -LRB- three . -RRB- four .", None),
        ("ptb", "mr. a has 3.5 m. now ... and", ["mr. a has 3.5 m. now ... and"]),
        ("ptb", "he asked ? ' she said", ["he asked ? '", "she said"]),
        ("ptb", ". a", [".", "a"]),
        ("files2rouge", "one . two ! three . four .", ["one .", "two ! three .", "four ."]),
        ("files2rouge", "one. two .", ["one. two ."]),
    ],
)
def test_splitters(split: str, text: str, lines: list[str] | None) -> None:
    expected = lines or ["`` one . ''", "two -LRB- three . -RRB-", "four ."]
    assert SPLITTERS[split](text).split("\n") == expected


@pytest.mark.parametrize("split", [name for name in SPLITTERS if name != "nltk"])
def test_splitters_add_line_breaks_and_nothing_else(split: str) -> None:
    text = "A b. C d ! E f? g\nh . i 'j' . '' k"
    assert SPLITTERS[split](text).split() == text.split()
    assert set(SPLITTERS[split]("\n")) == {"\n"}


def test_punkt_is_used_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nltk.sent_tokenize", lambda line: line.split("|"))
    assert SPLITTERS["nltk"]("a|b\nc") == "a\nb\nc"


def test_punkt_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nltk.data.path", [])
    with pytest.raises(UserError, match="python -m nltk.downloader punkt_tab"):
        SPLITTERS["nltk"]("One. Two.")


def test_treebank_words() -> None:
    found = TOKENIZATIONS["ptb"]("I can't (really) say so.\nCannot you?")
    assert found == "I ca n't -LRB- really -RRB- say so .\nCan not you ?"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "perl", "tokenization": "none"}, "unknown split 'perl'. Known: files2rouge"),
        ({"split": "newline", "tokenization": "13a"}, "unknown tokenization '13a'. Known: none"),
    ],
)
def test_unknown_names(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_and_tokenize("a", **settings)


@pytest.mark.parametrize(
    ("text", "together"),
    [
        ("He won. They lost.", True),
        ("he won ! they lost", True),
        ("`` he won . '' they lost .", True),
        ('"They lost." He left.', True),
        ("In Berlin. Then home.", True),
        ("He won.\nThey lost.", False),
        ("He won.", False),
        ("he won .", False),
        ("Mr. Smith and Gov. J. P. Doe left the U.S. Senate on Sept. 11 at 5 p.m. sharp.", False),
        ("See a.b. and 3.5 m, i.e. more", False),
        ("", False),
    ],
)
def test_sentences_that_stand_in_one_line(text: str, together: bool) -> None:
    assert run_together([text]) == together


def test_a_few_texts_of_several_sentences_are_not_many() -> None:
    assert run_together(["One more. Two more.", *["One."] * 3, *[""] * 9])
    assert not run_together(["One more. Two more.", *["One."] * 4])
    assert not run_together([])


def test_real_single_sentences_are_told_from_real_texts(data_folder: Path) -> None:
    lines = (data_folder / "scitldr" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    sources = [json.loads(line)["source"] for line in lines]
    assert not run_together(sentence for source in sources for sentence in source)
    assert run_together(" ".join(source) for source in sources)
