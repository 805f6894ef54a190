import json
from pathlib import Path

import pytest

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import read_json, write_json


def test_a_json_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n  "a": 1\n}\n'

    def broken_off(self: Path, text: str, **options: object) -> int:
        with self.open("w") as file:
            file.write(text[:3])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", broken_off)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir() if file != path] == ["run.json.new"]


@pytest.mark.parametrize("content", ["{", json.dumps([1]), "[" * 100000])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "prepared.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"prepared\.json is damaged: "):
        read_json(path)
