from pathlib import Path

import pytest
import sentencepiece

from deltasam_fairseq.data.sentencepiece_model import decode, encode, train_model
from deltasam_fairseq.errors import UserError

TEXTS = [
    f"the {a} {b} of number {i}" for i in range(40) for a in ("old", "new") for b in ("ox", "ax")
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pieces") / "sentencepiece.model"
    train_model(TEXTS, path, vocab_size=30)
    return path


def test_decode_undoes_encode(model: Path) -> None:
    encoded = encode(TEXTS, model, max_tokens=100, workers=2)
    assert [decode(pieces) for pieces in encoded] == TEXTS


def test_encode_cuts(model: Path) -> None:
    (whole,) = encode(TEXTS[:1], model, max_tokens=100, workers=1)
    (cut,) = encode(TEXTS[:1], model, max_tokens=3, workers=1)
    assert cut.split() == whole.split()[:3]


def test_training_is_deterministic_and_keeps_to_the_size(tmp_path: Path, model: Path) -> None:
    again = tmp_path / "again.model"
    assert train_model(TEXTS, again, vocab_size=30) == 30
    assert again.read_bytes() == model.read_bytes()


def test_a_vocabulary_without_room_for_the_characters_says_how_many_there_are(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        UserError, match="--vocab-size 5 is too small .* alone need (\\d+) pieces"
    ) as at:
        train_model(TEXTS, tmp_path / "small.model", vocab_size=5)
    least = int(str(at.value).split()[-2])
    assert train_model(TEXTS, tmp_path / "small.model", vocab_size=least) <= least


def test_a_small_text_yields_fewer_pieces(tmp_path: Path) -> None:
    assert train_model(TEXTS, tmp_path / "small.model", vocab_size=5000) < 200


def test_long_lines_are_not_left_out(tmp_path: Path) -> None:
    long = "zebra quagga " * 2000  # beyond sentencepiece's own limit
    model = tmp_path / "long.model"
    train_model([*TEXTS, long], model, vocab_size=80)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    assert processor.piece_to_id("q") != processor.unk_id()
