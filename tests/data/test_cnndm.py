from pathlib import Path

import pytest

from deltasam_fairseq.data.aligned import Aligned
from deltasam_fairseq.data.cnndm import COUNTS, CnndmOptions, check_counts, clean, cnndm_origin
from deltasam_fairseq.data.text_pairs import TextFiles
from deltasam_fairseq.errors import UserError

PAIR = Aligned(["(CNN) -- It rained.", "", "(CNN)", "Sun."], ["Rain.", "x", "y", "Sunny."])


def test_bylines_and_empty_pairs_go_and_are_counted() -> None:
    said: list[str] = []
    assert clean(PAIR, "train", say=said.append) == Aligned(
        ["It rained.", "Sun."], ["Rain.", "Sunny."]
    )
    assert said == [
        "train: 2 bylines such as '(CNN) --' stripped",
        "train: 2 of 4 pairs left out: article or summary is empty",
    ]
    assert len(clean(PAIR, "train", keep_bylines=True, say=said.append)) == 3


def test_a_split_without_a_pair_is_an_error() -> None:
    with pytest.raises(UserError, match="test: every pair has an empty"):
        clean(Aligned(["a"], [""]), "test", say=lambda line: None)


def test_counts_are_compared_and_differences_said() -> None:
    said: list[str] = []
    check_counts(COUNTS, strict=True, say=said.append)
    assert said == ["the numbers of pairs are those of CNN/DailyMail: 287,113, 13,368 and 11,490"]
    other = {**COUNTS, "train": 287_227}
    check_counts(other, strict=False, say=said.append)
    assert said[1:] == ["note: train: 287,227 pairs, CNN/DailyMail has 287,113 (+114)"]
    with pytest.raises(UserError, match="train: 287,227 pairs.*leave --strict-counts out"):
        check_counts(other, strict=True)


def test_carriage_returns_inside_articles_do_not_shift_the_pairs(tmp_path: Path) -> None:
    source, target = tmp_path / "s", tmp_path / "t"
    source.write_bytes(b"one\rmore\r\n\r\nthree\n")
    target.write_bytes(b"1\n2\n3\n")
    said: list[str] = []
    files = TextFiles(*[(source, target)] * 3)
    splits = cnndm_origin(files, CnndmOptions(), say=said.append).load(tmp_path)
    assert splits["train"] == Aligned(["one more", "three"], ["1", "3"])
    assert "note: test: 2 pairs, CNN/DailyMail has 11,490 (-11,488)" in said
    target.write_bytes(b"1\n2\n3\n4\n")
    with pytest.raises(UserError, match="has 3 lines and .* has 4.*carriage returns"):
        cnndm_origin(files, CnndmOptions()).load(tmp_path)


def test_real_articles(data_folder: Path, tmp_path: Path) -> None:
    pairs = data_folder / "cnndm" / "validation1000"
    files = TextFiles((pairs.with_suffix(".source"), pairs.with_suffix(".target")))
    options = CnndmOptions(held_out=50)
    splits = cnndm_origin(files, options, say=lambda line: None).load(tmp_path)
    assert [len(splits[name]) for name in ("train", "valid", "test")] == [900, 50, 50]
    everything = [text for pair in splits.values() for text in pair.sources]
    assert not any(text.startswith("(CNN)") for text in everything)
    with pytest.raises(UserError, match=r"-286,213"):
        cnndm_origin(files, CnndmOptions(held_out=50, strict_counts=True)).load(tmp_path)
