import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.data import pipeline, text_pairs
from deltasam_fairseq.data.aligned import Aligned
from deltasam_fairseq.data.prepared import PreparedData
from deltasam_fairseq.data.text_pairs import Origin, prepare_pairs
from deltasam_fairseq.data.tokens import TokenSettings
from deltasam_fairseq.errors import UserError

TOKENS = TokenSettings(vocab_size=40, max_source_tokens=6, max_target_tokens=4)
PAIRS = Aligned(
    [f"the tall oak number {i} grows on and on" for i in range(30)],
    [f"oak number {i} still grows" for i in range(30)],
)
SPLITS = {"train": PAIRS, "valid": PAIRS, "test": PAIRS}


def origin(number: int = 1, load: Callable[[Path], dict[str, Aligned]] | None = None) -> Origin:
    return Origin("text", {"number": number}, load or (lambda folder: SPLITS))


def fail(folder: Path) -> dict[str, Aligned]:
    (folder / "raw").mkdir()
    raise UserError("broke off")


@pytest.fixture(autouse=True)
def without_fairseq(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the hash of the pieces where fairseq-preprocess would write binary files."""

    def binarize(pieces: Path, destination: Path, *, log: Path, **settings: Any) -> None:
        destination.mkdir()
        log.write_text("done\n")

    monkeypatch.setattr(text_pairs, "binarize", binarize)
    monkeypatch.setattr(pipeline, "require_fairseq", lambda: None)


def test_a_finished_folder_holds_text_pieces_and_facts(tmp_path: Path) -> None:
    data = prepare_pairs(tmp_path / "d", origin(), TOKENS, say=lambda line: None)
    assert data.texts("test", "target") == PAIRS.targets
    lines = data.pieces("train", "source").read_text().splitlines()
    assert len(lines) == 30
    assert {len(line.split()) for line in lines} == {TOKENS.max_source_tokens}
    assert data.facts["pairs"] == {"train": 30, "valid": 30, "test": 30}
    assert data == PreparedData.load(tmp_path / "d")
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_the_hash_is_that_of_the_content(tmp_path: Path) -> None:
    other = Aligned(PAIRS.sources, [*PAIRS.targets[:-1], "something else"])

    def made(name: str, test: Aligned) -> PreparedData:
        splits = {**SPLITS, "test": test}
        return prepare_pairs(
            tmp_path / name, origin(load=lambda folder: splits), TOKENS, say=lambda line: None
        )

    first, same, different = made("a", PAIRS), made("b", PAIRS), made("c", other)
    assert first.sha256 == same.sha256 != different.sha256


def test_the_same_inputs_are_not_read_again(tmp_path: Path) -> None:
    said: list[str] = []
    prepare_pairs(tmp_path / "d", origin(), TOKENS, say=lambda line: None)
    prepare_pairs(tmp_path / "d", origin(load=fail), TOKENS, say=said.append)
    assert said == [f"{tmp_path / 'd'}: finished before from the same inputs; nothing to do"]


@pytest.mark.parametrize(
    ("changed", "tokens", "message"),
    [
        (origin(2), TOKENS, r"other inputs: number was 1, now 2\. Pass --force"),
        (origin(1), TokenSettings(50, 6, 4), r"vocab_size was 40, now 50\."),
        (Origin("cnndm", {"number": 1}, fail), TOKENS, r"kind was text, now cnndm\."),
    ],
)
def test_other_inputs_need_force(
    tmp_path: Path, changed: Origin, tokens: TokenSettings, message: str
) -> None:
    prepare_pairs(tmp_path / "d", origin(), TOKENS, say=lambda line: None)
    before = (tmp_path / "d" / PreparedData.MARKER).read_text()
    with pytest.raises(UserError, match=message):
        prepare_pairs(tmp_path / "d", changed, tokens, say=lambda line: None)
    assert (tmp_path / "d" / PreparedData.MARKER).read_text() == before


def test_force_replaces_the_folder(tmp_path: Path) -> None:
    prepare_pairs(tmp_path / "d", origin(), TOKENS, say=lambda line: None)
    data = prepare_pairs(tmp_path / "d", origin(2), TOKENS, force=True, say=lambda line: None)
    assert data.facts["inputs"] == {"number": 2}


def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="broke off"):
        prepare_pairs(tmp_path / "d", origin(load=fail), TOKENS, say=lambda line: None)
    assert list(tmp_path.iterdir()) == []
    prepare_pairs(tmp_path / "d", origin(), TOKENS, say=lambda line: None)
    with pytest.raises(UserError, match="broke off"):
        prepare_pairs(tmp_path / "d", origin(2, fail), TOKENS, force=True, say=lambda line: None)
    assert PreparedData.load(tmp_path / "d").facts["inputs"] == {"number": 1}


def test_a_link_stays_one_and_the_folder_one_is_in_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    link = tmp_path / "d"
    link.symlink_to(tmp_path / "scratch")
    for number in (1, 2):
        data = prepare_pairs(link, origin(number), TOKENS, force=True, say=lambda line: None)
        assert data.facts["inputs"] == {"number": number}
    assert link.is_symlink()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for place in (Path(), Path("../empty")):
        with pytest.raises(UserError, match="cannot be replaced, as this folder is in it; start"):
            prepare_pairs(place, origin(), TOKENS, say=lambda line: None)


def test_what_a_killed_process_left_is_never_taken_as_finished(tmp_path: Path) -> None:
    left = tmp_path / "d.unfinished-abc"
    (left / "raw").mkdir(parents=True)
    with pytest.raises(UserError, match=r"is not a finished data folder.*deltasam prepare"):
        PreparedData.load(left)
    prepare_pairs(tmp_path / "d", origin(), TOKENS, say=lambda line: None)
    assert json.loads((tmp_path / "d" / PreparedData.MARKER).read_text())["pieces"] > 0


def test_data_of_a_task_on_sentences_is_no_text_to_generate(tmp_path: Path) -> None:
    (tmp_path / PreparedData.MARKER).write_text(json.dumps({"kind": "sentences", "task": "RTE"}))
    with pytest.raises(UserError, match="was made for RTE, not for texts to generate; give"):
        PreparedData.load(tmp_path)


def test_a_folder_of_someone_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="was not made by deltasam prepare"):
        prepare_pairs(tmp_path / "d", origin(), TOKENS, force=True, say=lambda line: None)
    assert (tmp_path / "d" / "thesis.tex").exists()
