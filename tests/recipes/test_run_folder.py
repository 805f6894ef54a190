from pathlib import Path

import pytest

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.run_folder import RunFolder


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


def test_a_record_survives_a_round_trip(used: RunFolder) -> None:
    used.write_record({"text": "δ-SAM", "none": None})
    assert used.record() == {"text": "δ-SAM", "none": None}
    assert sorted(path.name for path in used.path.iterdir()) == ["checkpoints", "run.json"]


def test_a_folder_without_a_record_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run \(it has no run.json\).*deltasam train"):
        RunFolder(tmp_path).record()
