"""The table of runs in docs/rivals.md is that of the records that were kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltasam_fairseq.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_is_that_of_the_records(capsys: pytest.CaptureFixture[str]) -> None:
    records = ROOT / "scripts" / "results" / "sweeps_rivals_epyc-2core_202611"
    assert main(["table", "grid", "--sweeps", str(records), "--format", "markdown"]) == 0
    table = capsys.readouterr().out.partition("\n\n")[0]
    assert table.count("glue/mrpc") == len(list(records.rglob("*.json")))
    assert table in (ROOT / "docs" / "rivals.md").read_text()
