"""The study of a tail's cost: a tiny run, and its sums."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from scripts.studies import tail_cost  # noqa: E402
from tests.support import fairseq_data  # noqa: E402


def test_a_tiny_run_perturbs_in_its_tail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fairseq_data.write_prediction_data(tmp_path / "toy" / "bin")
    few = ["--data", str(tmp_path / "toy"), *"--size tiny --updates 5 --tail 0.4".split()]
    tail_cost.main([*few, "--batch-size", "4", "--json"])
    text = capsys.readouterr().out
    record = json.loads(text)
    assert record["made"] == {"none": 5, "tail": 5}
    assert record["method_flags"]["tail"].endswith("--sam-tail 0.4")
    assert record["size"]["sentences"] == 20
    found = tail_cost.parts(record)
    assert [part["updates"] for part in found.values()] == [3, 2, 5]
    path = tmp_path / "record.json"
    path.write_text(text)
    tail_cost.main(["--show", str(path)])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| whole run | 5 |")
    assert row.endswith(f"| {found['whole run']['ratio']:.2f} |")
    with pytest.raises(SystemExit):
        tail_cost.main([*few[:-4], "--updates", "40", "--batch-size", "4"])
    assert "has 12 batches" in capsys.readouterr().err


def test_the_parts_are_sums_of_updates() -> None:
    seconds = {"none": [1.0, 1.0, 1.0, 1.0], "tail": [1.0, 1.5, 2.0, 4.0]}
    record = {
        "settings": {"clock": "processor", "updates": 4, "tail": 0.25},
        "seconds": {"processor": seconds},
    }
    ratios = [part["ratio"] for part in tail_cost.parts(record).values()]
    assert ratios == [1.5, 4.0, 8.5 / 4]


@pytest.mark.parametrize(
    ("words", "message"), [("", "--data DIR"), ("--data absent", "absent has no folder bin")]
)
def test_missing_data_is_said(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tail_cost.main(words.split())
    assert message in capsys.readouterr().err
