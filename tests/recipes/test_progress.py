"""What a terminal shows of a run."""

from __future__ import annotations

import json

import pytest

from deltasam_fairseq.recipes.progress import Progress, duration


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def line(updates: int, epochs: float) -> str:
    values = {"epoch": 1, "update": epochs, "loss": "4.5", "num_updates": str(updates)}
    return f"| INFO | train_inner | {json.dumps(values)}"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        # 20 updates and 2 epochs in 100 seconds.
        (["--max-update", "90"], "  update 30/90: loss 4.5, 5 min 0 s left"),
        (["--max-epoch", "4"], "  update 30: loss 4.5, 0 min 50 s left"),
        (["--max-epoch", "4", "--max-update", "90"], "  update 30/90: loss 4.5, 0 min 50 s left"),
        (["--max-epoch", "9", "--max-update", "32"], "  update 30/32: loss 4.5, 0 min 10 s left"),
        (["--max-epoch", "2"], "  update 30: loss 4.5, 0 min 0 s left"),
        (["--max-update", "0", "--max-epoch", "0"], "  update 30: loss 4.5"),
        ([], "  update 30: loss 4.5"),
    ],
)
def test_the_time_left_is_that_to_the_first_limit(limits: list[str], expected: str) -> None:
    said: list[str] = []
    clock = Clock()
    progress = Progress(["fairseq-train", "data", *limits], said.append, clock)
    clock.now = 50.0  # the start, and whatever comes before the first line
    progress(line(10, 1.0))
    assert "left" not in said[0]
    progress("warning: noise")
    clock.now = 150.0
    progress(line(30, 3.0))
    assert said[1:] == [expected]


def test_a_resumed_run_is_timed_from_where_it_goes_on() -> None:
    said: list[str] = []
    clock = Clock()
    progress = Progress(["fairseq-train", "--max-update", "1000"], said.append, clock)
    progress(line(900, 9.0))
    clock.now = 10.0
    progress(line(905, 9.05))
    assert said[-1].endswith("3 min 10 s left")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 min 0 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (90_000, "25 h 0 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
