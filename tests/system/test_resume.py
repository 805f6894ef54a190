"""Runs that stop and go on end where an undisturbed run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from tests.support import fairseq_data  # noqa: E402
from tests.support import fairseq_toys as toys  # noqa: E402
from tests.support.compare import assert_same_bits  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fairseq_data.write_translation_data(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fairseq_data.write_prediction_data(tmp_path_factory.mktemp("classes"))


def flags_of(save: Path, *flags: str) -> list[str]:
    """Return the flags of a run that saves every epoch."""
    return [
        *("--save-dir", str(save), "--no-epoch-checkpoints", "--max-epoch", "3"),
        *flags,
    ]


def run(data: Path, save: Path, *flags: str, toy: list[str] = toys.TRANSLATION) -> list[Any]:
    """Run it to its end, in this process, and return what it logged."""
    return toys.train(data, *toy, *flags_of(save, *flags), save=True)


def checkpoint(save: Path) -> dict[str, Any]:
    """Load the last checkpoint of a run of our own."""
    return torch.load(save / "checkpoint_last.pt", map_location="cpu", weights_only=False)


def assert_same_run(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Compare weights, optimizer state and update counts of two checkpoints, bit for bit."""
    assert_same_bits(toys.used(one["model"]), toys.used(two["model"]))
    states = [c["last_optimizer_state"]["state"] for c in (one, two)]
    assert states[0].keys() == states[1].keys()
    for key, entry in states[0].items():
        for part, value in entry.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][key][part]))
    counts = [c["optimizer_history"][-1]["num_updates"] for c in (one, two)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("method", ["delta_sam", "sam"])
def test_three_epochs_are_one_and_two_more(classes: Path, tmp_path: Path, method: str) -> None:
    # Not on translation: fairseq-fixed groups its sentences by a seed that
    # depends on the epoch in which a process started, whatever the optimizer.
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    flags = ("--sam-method", method)
    run(classes, straight, *flags, toy=toys.PREDICTION)
    run(classes, resumed, *flags, "--max-epoch", "1", toy=toys.PREDICTION)
    lines = run(classes, resumed, *flags, toy=toys.PREDICTION)
    assert [line["epoch"] for line in lines if "train_loss" in line] == [2, 3]
    assert_same_run(checkpoint(straight), checkpoint(resumed))


def test_resuming_in_the_middle_of_an_epoch(data: Path, tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run(data, straight)
    # An epoch has 8 updates.
    run(data, resumed, "--max-update", "5", "--save-interval-updates", "5")
    assert checkpoint(resumed)["optimizer_history"][-1]["num_updates"] == 5
    run(data, resumed)
    assert_same_run(checkpoint(straight), checkpoint(resumed))


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path, warm_python: str) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    # One long epoch, so that the kill falls between two of its checkpoints.
    longer = fairseq_data.write_translation_data(tmp_path / "data", train=480)
    run(longer, straight, "--max-epoch", "1")
    flags = ("--max-epoch", "1", "--save-interval-updates", "7", "--keep-interval-updates", "1")
    command = [
        *(warm_python, "-m", "fairseq_cli.train", str(longer)),
        *("--user-dir", str(ROOT / "user_dir"), *toys.flags(toys.TRANSLATION, save=True)),
        *flags_of(killed, *flags),
    ]
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere, cwd=tmp_path)
        deadline = time.time() + 300
        while not (killed / "checkpoint_last.pt").exists() and time.time() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    reached = checkpoint(killed)["optimizer_history"][-1]["num_updates"]
    assert 0 < reached < 60
    run(longer, killed, *flags)
    assert_same_run(checkpoint(straight), checkpoint(killed))


def test_adam_goes_on_with_delta_sam_and_back(data: Path, tmp_path: Path) -> None:
    save = tmp_path / "run"
    run(data, save, "--max-epoch", "1", "--optimizer", "adam")
    before = checkpoint(save)["last_optimizer_state"]["state"][0]
    assert before["step"] == 8
    lines = run(data, save, "--max-epoch", "2")
    assert "sam_gnorm" in lines[0]
    assert checkpoint(save)["last_optimizer_state"]["state"][0]["step"] == 16
    lines = run(data, save, "--optimizer", "adam")
    assert "sam_gnorm" not in lines[0]
    assert checkpoint(save)["last_optimizer_state"]["state"][0]["step"] == 24


def test_another_inner_optimizer_says_what_to_pass(data: Path, tmp_path: Path) -> None:
    save = tmp_path / "run"
    run(data, save, "--max-epoch", "1", "--optimizer", "adam")
    with pytest.raises(AssertionError, match="please reset the optimizer .--reset-optimizer."):
        run(data, save, "--sam-inner", "nag")
    run(data, save, "--sam-inner", "nag", "--reset-optimizer", "--max-epoch", "2")


def test_checkpoints_hold_what_the_inner_optimizers_would(data: Path, tmp_path: Path) -> None:
    """No saved weights and no scratch space: a checkpoint is no larger than adam's."""
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    run(data, plain, "--max-epoch", "1", "--optimizer", "adam")
    run(data, ours, "--max-epoch", "1")
    one, two = checkpoint(plain), checkpoint(ours)
    assert one["last_optimizer_state"].keys() == two["last_optimizer_state"].keys()
    states = [c["last_optimizer_state"]["state"] for c in (one, two)]
    assert {k: sorted(v) for k, v in states[0].items()} == {
        k: sorted(v) for k, v in states[1].items()
    }
    assert one["optimizer_history"][-1]["optimizer_name"] == "FairseqAdam"
    assert two["optimizer_history"][-1]["optimizer_name"] == "FairseqAdam"
