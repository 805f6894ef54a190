from pathlib import Path

import pytest

from deltasam_fairseq.data.text_pairs import TextFiles, text_origin
from deltasam_fairseq.errors import UserError


def pair(folder: Path, name: str, count: int) -> tuple[Path, Path]:
    paths = folder / f"{name}.source", folder / f"{name}.target"
    for path in paths:
        path.write_text("".join(f"{name} {i} of {path.suffix}\n" for i in range(count)))
    return paths


def test_given_files_are_taken_as_they_are(tmp_path: Path) -> None:
    files = TextFiles(*(pair(tmp_path, name, 3) for name in ("train", "valid", "test")))
    splits = text_origin(files).load(tmp_path)
    assert {name: part.sources[0] for name, part in splits.items()} == {
        "train": "train 0 of .source",
        "valid": "valid 0 of .source",
        "test": "test 0 of .source",
    }


@pytest.mark.parametrize(("asked", "size"), [(None, 10), (7, 7)])
def test_missing_splits_are_held_out(tmp_path: Path, asked: int | None, size: int) -> None:
    splits = text_origin(TextFiles(pair(tmp_path, "train", 200)), held_out=asked).load(tmp_path)
    sizes = {name: len(part) for name, part in splits.items()}
    assert sizes == {"train": 200 - 2 * size, "valid": size, "test": size}
    assert not set(splits["test"].sources) & set(splits["valid"].sources)


def test_inputs_follow_the_content_and_not_the_place(tmp_path: Path) -> None:
    first = text_origin(TextFiles(pair(tmp_path, "train", 5))).inputs
    (tmp_path / "elsewhere").mkdir()
    assert text_origin(TextFiles(pair(tmp_path / "elsewhere", "train", 5))).inputs == first
    assert text_origin(TextFiles(pair(tmp_path, "train", 6))).inputs != first
    assert text_origin(TextFiles(pair(tmp_path, "train", 5)), held_out=2).inputs != first


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent: no such file$"):
        text_origin(TextFiles((tmp_path / "absent", tmp_path / "absent")))
