import json
from pathlib import Path

import pytest

from deltasam_fairseq.data import gpt2
from deltasam_fairseq.data.aligned import Aligned
from deltasam_fairseq.data.gpt2 import Gpt2Bpe
from deltasam_fairseq.data.prepared import PreparedData
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import write_lines


@pytest.fixture
def bpe(tmp_path: Path) -> Gpt2Bpe:
    """A vocabulary of three letters and the space, with one merge."""
    letters = {letter: number for number, letter in enumerate(["a", "b", "c", "\u0120", "ab"])}
    (tmp_path / "encoder.json").write_text(json.dumps(letters))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\n", encoding="utf-8")
    (tmp_path / "dict.txt").write_text("".join(f"{number} 1\n" for number in range(5)))
    files = [tmp_path / name for name in ("encoder.json", "vocab.bpe", "dict.txt")]
    return Gpt2Bpe(*files, max_test_target_tokens=2)


def write(bpe: Gpt2Bpe, folder: Path) -> PreparedData:
    pair = Aligned(["abc ab", "c"], ["a", "cab"])
    data = PreparedData(folder / "work", {})
    data.path.mkdir()
    splits = dict.fromkeys(("train", "valid", "test"), pair)
    for split in splits:
        write_lines(data.raw(split, "source"), pair.sources)
        write_lines(data.raw(split, "target"), pair.targets)
    data.facts.update(bpe.write(data, splits, workers=2, say=lambda line: None))
    return data


@pytest.mark.fairseq
@pytest.mark.usefixtures("warm_programs")
def test_text_becomes_numbers_by_fairseqs_program(bpe: Gpt2Bpe, tmp_path: Path) -> None:
    data = write(bpe, tmp_path)
    assert data.pieces("train", "source").read_text().splitlines() == ["4 2 3 4", "2"]
    assert data.pieces("train", "target").read_text().splitlines() == ["0", "2 4"]
    assert data.facts == {"pieces": 5, "bpe": "gpt2"}
    assert data.is_gpt2
    assert data.gpt2("dict.txt").read_bytes() == bpe.dict_txt.read_bytes()


@pytest.mark.fairseq
@pytest.mark.usefixtures("warm_programs")
def test_long_test_targets_are_cut_in_the_binary_files_alone(bpe: Gpt2Bpe, tmp_path: Path) -> None:
    shorter = Gpt2Bpe(*bpe.files().values(), max_test_target_tokens=1)
    data = write(shorter, tmp_path)
    assert data.pieces("test", "target").read_text().splitlines() == ["0", "2"]
    assert data.pieces("valid", "target").read_text().splitlines() == ["0", "2 4"]
    assert data.texts("test", "target") == ["a", "cab"]


@pytest.mark.fairseq
def test_the_encoders_failure_is_quoted(bpe: Gpt2Bpe, tmp_path: Path) -> None:
    bpe.encoder_json.write_text("{}")
    with pytest.raises(UserError, match=r"(?s)BPE encoder ended with status 1.*KeyError"):
        write(bpe, tmp_path)


def test_another_file_than_gpt2s_is_named_with_size_and_hash(bpe: Gpt2Bpe) -> None:
    with pytest.raises(
        UserError, match=r"encoder\.json.* bytes and sha256 .* not 1042301 and 1961"
    ):
        bpe.require_known()
    with pytest.raises(UserError, match="nowhere: no such file"):
        Gpt2Bpe(Path("nowhere"), bpe.vocab_bpe, bpe.dict_txt).require_known()


def test_the_real_files_are_known(data_folder: Path) -> None:
    folder = data_folder / "gpt2_bpe"
    names = ("encoder.json", "vocab.bpe", "dict.bart_roberta_50260.txt")
    Gpt2Bpe(*(folder / name for name in names)).require_known()
    with pytest.raises(UserError, match=r"is not the dict\.txt of GPT-2 and BART"):
        Gpt2Bpe(*(folder / n for n in (*names[:2], "dict.longmem_51196.txt"))).require_known()


def test_a_fairseq_without_its_examples_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="this fairseq lacks examples/roberta"):
        gpt2.bpe_program()
