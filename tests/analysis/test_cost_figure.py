"""Metric against seconds of training, as a figure."""

from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.analysis import figures
from deltasam_fairseq.analysis.figures import draw_costs
from deltasam_fairseq.errors import UserError
from tests.support.sweep_records import write_record

STARTS = {"png": b"\x89PNG", "PNG": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


@pytest.mark.parametrize("suffix", STARTS)
def test_costs_are_drawn(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / f"costs.{suffix}"
    with pytest.raises(UserError, match="no finished run below"):
        draw_costs([tmp_path], out)
    for method, seed in (("none", 1), ("sam", 2), ("random", 1)):
        write_record(tmp_path, method, seed, 60.0 + seed)
    draw_costs([tmp_path], out)
    assert out.read_bytes().startswith(STARTS[suffix])


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match="a figure ends in"):
        draw_costs([tmp_path], tmp_path / "out.txt")


def test_runs_whose_time_is_not_known_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    seconds = {"train": 0.0}
    write_record(tmp_path, "sam", 1, 60.0, interruptions=1)
    write_record(tmp_path, "sam", 2, 61.0, seconds=seconds)
    with pytest.raises(UserError, match="no finished run .* has a known time of training"):
        draw_costs([tmp_path], tmp_path / "costs.png")
    write_record(tmp_path, "sam", 3, 62.0)
    write_record(tmp_path, "none", 1, 62.0, seconds=seconds)
    drawn: dict[str, Any] = {}
    draw = figures._draw_method

    def note(axis: Any, method: str, group: Any, colour: str) -> None:
        drawn[method] = group.seeds
        draw(axis, method, group, colour)

    monkeypatch.setattr(figures, "_draw_method", note)
    draw_costs([tmp_path], tmp_path / "costs.png")
    assert drawn == {"sam": [3]}
