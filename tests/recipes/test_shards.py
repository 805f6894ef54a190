import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes import shards as module
from deltasam_fairseq.recipes.hypotheses import GPT2
from deltasam_fairseq.recipes.shards import Shards
from tests.support.prepared_data import program

# Decodes every n-th sentence of ten, as fairseq does with its rank; part FAIL fails.
STATEMENTS = (
    "import os, pathlib, sys",
    "flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))",
    "size = int(flags.get('--distributed-world-size', 1))",
    "rank = int(flags.get('--distributed-rank', 0))",
    "pathlib.Path(flags['--calls']).open('a').write(f'{rank}\\n')",
    "gpu = os.environ.get('CUDA_VISIBLE_DEVICES', 'none')",
    "[print(f'D-{i}\\t-0.5\\tsentence {i}') for i in range(rank, 10, size)]",
    "print('gpu', gpu)",
    "raise SystemExit(int(flags['--fail'] == str(rank)))",
)


@pytest.fixture
def decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[int, str]]:
    monkeypatch.setattr(module, "PART", 4)

    def run(
        *, wanted: str = "x", processes: int = 1, fail: int = -1, say: Any = lambda line: None
    ) -> dict[int, str]:
        shards = Shards(tmp_path / "out", {"flags": wanted}, 10, processes, GPT2, say)
        flags = ["--calls", str(tmp_path / "calls"), "--fail", str(fail)]
        return shards.run([*program(*STATEMENTS), *flags])

    return run


def calls(tmp_path: Path) -> list[int]:
    """Which parts were decoded since the last look."""
    path = tmp_path / "calls"
    ranks = sorted(int(line) for line in path.read_text().split()) if path.exists() else []
    path.unlink(missing_ok=True)
    return ranks


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_parts_together_are_the_whole(
    decode: Callable[..., dict[int, str]], processes: int
) -> None:
    said: list[str] = []
    found = decode(processes=processes, say=said.append)
    assert found == {number: f"sentence {number}" for number in range(10)}
    assert said == [f"  {number} of 10" for number in range(1, 11)]


def test_finished_parts_are_kept_when_another_fails(
    decode: Callable[..., dict[int, str]], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"(?s)ended with status 1.*generate-2-of-3\.log"):
        decode(fail=1)
    assert calls(tmp_path) == [0, 1]
    said: list[str] = []
    assert len(decode(say=said.append)) == 10
    assert said[0] == "1 of 3 parts are there from before"
    assert calls(tmp_path) == [1, 2]


def test_the_number_of_parts_stays_when_more_processes_go_on(
    decode: Callable[..., dict[int, str]], tmp_path: Path
) -> None:
    with pytest.raises(UserError):
        decode(fail=2)
    calls(tmp_path)
    assert len(decode(processes=2)) == 10
    assert calls(tmp_path) == [2]


def test_parts_of_other_flags_are_not_mixed(
    decode: Callable[..., dict[int, str]], tmp_path: Path
) -> None:
    with pytest.raises(UserError):
        decode(fail=2)
    calls(tmp_path)
    assert len(decode(wanted="y")) == 10
    assert calls(tmp_path) == [0, 1, 2]


def test_a_half_written_part_is_decoded_again(
    decode: Callable[..., dict[int, str]], tmp_path: Path
) -> None:
    decode()
    part = tmp_path / "out" / "part-2-of-3.json"
    part.rename(f"{part}.new")
    calls(tmp_path)
    decode()
    assert calls(tmp_path) == [1]
    assert json.loads(part.read_text())["1"] == "sentence 1"


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, {"0", "1"}), ("5", {"5"}), ("3,7", {"3", "7"}), ("", {""})]
)
def test_each_process_has_a_gpu_of_its_own(
    decode: Callable[..., dict[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    expected: set[str],
) -> None:
    monkeypatch.setattr(module, "hardware", lambda: {"gpus": ["one", "other"]})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    decode(processes=2)
    logs = (tmp_path / "out").glob("generate-*.log")
    assert {log.read_text().splitlines()[-1].removeprefix("gpu ") for log in logs} <= expected


def test_discarding_leaves_the_logs(decode: Callable[..., dict[int, str]], tmp_path: Path) -> None:
    decode()
    Shards(tmp_path / "out", {"flags": "x"}, 10, 1, GPT2, print).discard()
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".log"}
