"""The folder of a sweep: locks, what it is a sweep of, and records wherever they lie."""

import os
import subprocess
import sys
import threading
import time
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


def test_a_training_that_outlives_its_sweep_keeps_the_lock(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    training = "open('pipe').read()"  # until somebody opens the other end and closes it
    statements = (
        "import sys; from pathlib import Path",
        "from deltasam_fairseq.data.process import run_logged",
        "from deltasam_fairseq.recipes.sweep_folder import SweepFolder",
        "with SweepFolder(Path()).locked('a') as lock:",
        f"    run_logged([sys.executable, '-c', {training!r}], Path('log'), inherited=[lock])",
    )
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-c", "\n".join(statements)]
    sweep = subprocess.Popen(command, cwd=tmp_path)
    with (tmp_path / "pipe").open("w"):  # returns when the training reads
        sweep.kill()
        sweep.wait()
        with folder.locked("a") as lock:
            assert lock is None
    free, deadline = False, time.monotonic() + 30
    while not free and time.monotonic() < deadline:
        with folder.locked("a") as lock:
            free = lock is not None
        time.sleep(0.01)
    assert free


def test_locks_are_free_again_and_records_never_half_written(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    for _ in range(2):
        with folder.locked("a") as lock:
            assert lock is not None
    large = {"values": list(range(20_000))}
    broken: list[int] = []

    def read() -> None:
        for _ in range(200):
            record = folder.record("a")
            if record is not None and record != large:
                broken.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        folder.write_record("a", large)
    reader.join()
    assert not broken
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["a.json"]


def test_a_folder_is_a_sweep_of_one_thing(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    folder.claim({"recipe": "a", "model": "m"})
    folder.claim({"recipe": "a", "model": "m"})
    with pytest.raises(UserError, match="is a sweep with model m, not n; give another --out"):
        folder.claim({"recipe": "a", "model": "n"})
    assert [path.name for path in folder.path.iterdir()] == ["sweep.json"]
