import pytest

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.sentences import SPLITTERS, TOKENIZATIONS, split_and_tokenize


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
        ({"split": "perl", "tokenization": "none"}, "unknown split 'perl'; known: newline"),
        ({"split": "newline", "tokenization": "13a"}, "unknown tokenization '13a'; known: none"),
    ],
)
def test_unknown_names(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_and_tokenize("a", **settings)
