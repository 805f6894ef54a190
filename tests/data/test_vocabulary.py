"""WordPiece as fairseq's numbers, and cutting pairs to length."""

import sys
from pathlib import Path

import pytest

from deltasam_fairseq.data.vocabulary import (
    Gpt2Words,
    WordPiece,
    cut,
    write_bert_dictionary,
)
from deltasam_fairseq.errors import UserError
from tests.support.encoder_toys import TOKENS


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in TOKENS))
    return path


def test_every_row_of_bert_has_one_of_fairseq(vocab: Path, tmp_path: Path) -> None:
    order = write_bert_dictionary(vocab, tmp_path / "dict.txt")
    assert sorted(order) == list(range(len(TOKENS)))
    words = [line.split()[0] for line in (tmp_path / "dict.txt").read_text().splitlines()]
    named = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", *words]
    named[named.index("<mask>")] = "[MASK]"
    assert named == [TOKENS[row] for row in order]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (TOKENS[1:], r"lacks \[PAD\]; it is no vocabulary"),
        ([*TOKENS, "cat"], "has 'cat' twice"),
        ([*TOKENS, "<pad>"], "has <pad>, which fairseq's dictionary keeps for itself"),
    ],
)
def test_a_vocabulary_that_is_none(lines: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "v").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(UserError, match=message):
        write_bert_dictionary(tmp_path / "v", tmp_path / "dict.txt")


def test_wordpiece_cuts_as_bert_does(vocab: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    pieces = WordPiece(vocab, lowercase=True, strip_accents=True)
    found = pieces.encode(["The cats, sat.", "", "zzz Câts"], tmp_path, workers=1)
    assert found[0] == ["the", "cat", "##s", "[UNK]", "sat", "."]
    assert found[1:] == [[], ["[UNK]", "cat", "##s"]]
    cased = WordPiece(vocab, lowercase=False, strip_accents=False)
    assert cased.encode(["The cat"], tmp_path, workers=1) == [["[UNK]", "cat"]]
    accents = WordPiece(vocab, lowercase=True, strip_accents=False)
    assert accents.encode(["The cât"], tmp_path, workers=1) == [["the", "[UNK]"]]
    (tmp_path / "ideographs.txt").write_text("\n".join([*TOKENS, "中", "文", "##文"]))
    for split, expected in ((True, ["中", "文"]), (False, ["中", "##文"])):
        words = WordPiece(tmp_path / "ideographs.txt", True, True, split_chinese=split)
        assert words.encode(["中文"], tmp_path, workers=1) == [expected]
    assert (pieces.specials(1), pieces.specials(2)) == (2, 3)


def test_without_tokenizers_the_error_names_the_package(
    vocab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'deltasam_fairseq\[bert\]'"):
        WordPiece(vocab, lowercase=True, strip_accents=True).encode(["a"], tmp_path, workers=1)


@pytest.mark.fairseq
@pytest.mark.usefixtures("warm_programs")
def test_gpt2_by_fairseqs_program(data_folder: Path, tmp_path: Path) -> None:
    words = Gpt2Words(data_folder / "gpt2_bpe")
    assert words.encode(["Hello world", "", "world"], tmp_path, workers=1) == [
        ["15496", "995"],
        [],
        ["6894"],
    ]
    assert (words.specials(1), words.specials(2)) == (2, 4)


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
    [
        ((2, 3), 5, (2, 3)),
        ((4, 4), 5, (3, 2)),
        ((1, 9), 4, (1, 3)),
        ((9,), 4, (4,)),
        ((0, 2), 1, (0, 1)),
    ],
)
def test_the_longer_sentence_is_cut_first(
    lengths: tuple[int, ...], limit: int, expected: tuple[int, ...]
) -> None:
    sides = [[str(n) for n in range(length)] for length in lengths]
    found = cut(sides, limit)
    assert tuple(map(len, found)) == expected
    assert all(side == whole[: len(side)] for side, whole in zip(found, sides, strict=True))
