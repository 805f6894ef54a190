import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.run_folder import TIME, RunFolder, now


@pytest.fixture
def used(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    (run.checkpoints / "checkpoint_last.pt").touch()
    run.write_record({"method": "sam", "seed": 1})
    return run


def test_nothing_happens_to_an_earlier_run_without_a_choice(used: RunFolder) -> None:
    with pytest.raises(UserError, match="run holds checkpoints.*--resume.*--restart"):
        used.require_choice(resume=False, restart=False)
    used.require_choice(resume=True, restart=False)
    used.require_choice(resume=False, restart=True)


def test_a_run_without_a_checkpoint_cannot_be_resumed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.require_choice(resume=False, restart=False)
    with pytest.raises(UserError, match="nothing to resume: .*checkpoints holds no checkpoint"):
        run.require_choice(resume=True, restart=False)


def test_a_resumed_run_stays_what_it_was(used: RunFolder) -> None:
    used.require_same(method="sam", seed=1)
    with pytest.raises(UserError, match="was trained with method sam, not none; resume with"):
        used.require_same(method="none", seed=1)


def test_moving_aside_deletes_nothing(used: RunFolder) -> None:
    moved = used.move_aside()
    assert moved is not None
    assert moved.name.startswith("run.2")
    assert (moved / "checkpoints" / "checkpoint_last.pt").exists()
    assert not used.path.exists()
    assert used.move_aside() is None


def test_a_folder_that_holds_something_else_is_no_place_for_a_run(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "run.json.new").touch()
    RunFolder(data).require_choice(resume=False, restart=False)
    (data / "prepared.json").write_text("{}")
    (tmp_path / "file").touch()
    for path in (data, tmp_path / "file"):
        for restart in (False, True):
            with pytest.raises(UserError, match="was not made by deltasam train; give another"):
                RunFolder(path).require_choice(resume=False, restart=restart)


def test_the_folder_that_one_stands_in_is_not_moved(
    used: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(used.checkpoints)
    for path in (used.path, Path(".."), Path("../checkpoints")):
        with pytest.raises(UserError, match="this folder is in it; start from another folder"):
            RunFolder(path).move_aside()
    assert used.can_go_on()


def test_a_record_survives_a_round_trip(used: RunFolder) -> None:
    used.write_record({"text": "δ-SAM", "none": None})
    assert used.record() == {"text": "δ-SAM", "none": None}
    assert sorted(path.name for path in used.path.iterdir()) == ["checkpoints", "run.json"]


def test_a_folder_without_a_record_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run \(it has no run.json\).*deltasam train"):
        RunFolder(tmp_path).record()


@pytest.mark.parametrize("other", [{"seconds": 9.0}, {"seconds": 9.0, "began": "x"}])
def test_a_start_without_an_end_counts_to_its_last_line(
    used: RunFolder, other: dict[str, Any]
) -> None:
    """It still trains, or was killed."""
    began = time.time() - 5000
    open_start = {"began": time.strftime(TIME, time.localtime(began)), "ended": None}
    used.write_record({"starts": [other, open_start]})
    assert "seconds" not in used.record()["starts"][-1]  # nothing is known
    used.log.touch()
    os.utime(used.log, (began + 600, began + 600))
    assert used.record()["starts"][-1]["seconds"] == pytest.approx(600, abs=1)
    assert used.record()["starts"][0] == other
    # The log may be that of the start before.
    os.utime(used.log, (began - 60, began - 60))
    assert used.record()["starts"][-1]["seconds"] == 0


def test_the_time_of_a_record_can_be_read_back() -> None:
    assert abs(datetime.strptime(now(), TIME).timestamp() - time.time()) < 2
