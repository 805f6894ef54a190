"""Records are found wherever they lie, each once, and what is none is named."""

from pathlib import Path

import pytest

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.sweep_folder import SweepFolder, read_records
from tests.support.sweep_records import write_record

RTE = Path("glue/rte/bert_base_cased")


def scores(*folders: Path) -> list[float]:
    return [record["metrics"]["accuracy"] for record in read_records(folders)]


def test_links_are_followed_and_nothing_is_read_twice(tmp_path: Path) -> None:
    write_record(tmp_path / "disk", "none", 1, 60.0)
    write_record(tmp_path / "sweeps", "none", 2, 61.0)
    (tmp_path / "sweeps" / "more").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "sweeps")
    assert scores(tmp_path / "sweeps") == [61.0, 60.0]
    assert scores(tmp_path / "sweeps", tmp_path / "sweeps", tmp_path / "disk") == [61.0, 60.0]
    assert scores(tmp_path / "disk" / RTE / "records") == [60.0]
    assert scores(tmp_path / "none") == []


def test_what_lies_beside_records_is_no_record(tmp_path: Path) -> None:
    write_record(tmp_path, "none", 1, 60.0)
    records = tmp_path / RTE / "records"
    (records / "._none--seed1.json").write_bytes(b"\xff\xfe")
    (records / "notes.txt").write_text("seed 1 ran at night")
    assert scores(tmp_path) == [60.0]
    assert SweepFolder(tmp_path / RTE).recorded() == ["none--seed1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "half.json is damaged"),
        (b'{"recipe": "glue/r', "half.json is damaged"),
        (b"\xff", "half.json is damaged"),
        (b"[1]", "half.json is damaged: it holds no JSON object"),
        (b'{"recipe": "glue/rte"}', "half.json is no record of deltasam sweep: it lacks model, "),
    ],
)
def test_what_is_no_record_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    write_record(tmp_path, "none", 1, 60.0)
    (tmp_path / RTE / "records" / "half.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        scores(tmp_path)
