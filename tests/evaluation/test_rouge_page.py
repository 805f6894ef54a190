"""docs/rouge.md says what the code does, and its table is what the scorers say."""

from __future__ import annotations

import argparse
import importlib.util
import re
from pathlib import Path

import pytest

from deltasam_fairseq.cli import score_rouge
from deltasam_fairseq.evaluation.rouge import PROGRAMS, SPLITTERS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "rouge.md").read_text(encoding="utf-8")


def test_every_option_is_on_the_page_and_no_other() -> None:
    parser = argparse.ArgumentParser()
    score_rouge.add_arguments(parser)
    known = set(re.findall(r"--[a-z-]+", parser.format_help())) - {"--help"}
    settings = PAGE.split("## Settings")[1].split("##")[0]
    named = set(re.findall(r"`(--[a-z-]+)", settings)) | {"--resamples", "--trials"}
    # An old name of --split, kept for those who use it.
    assert named == known - {"--sentence-split"}
    for choice in (*(f"--split {name}" for name in SPLITTERS), *(f"--like {n}" for n in PROGRAMS)):
        assert f"`{choice}`" in settings


def test_the_table_is_what_the_script_prints(data_folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("table", ROOT / "scripts" / "rouge_table.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    lines = script.table(data_folder / "realsumm" / "rouge155_scored.jsonl").splitlines()
    (table,) = re.findall(r"<!-- table: .*? -->\n(.*?)\n<!-- /table -->", PAGE, re.DOTALL)
    on_page = table.splitlines()
    # The last line has the versions. A scorer that is not installed has a row on the page only.
    assert [line for line in on_page[:-2] if "(pltrdy)" not in line or line in lines] == lines[:-2]


@pytest.mark.parametrize("name", ["scripts/rouge.sh", "scripts/rouge_table.py"])
def test_the_scripts_that_it_names_are_there(name: str) -> None:
    assert (ROOT / name).is_file()
    assert name in PAGE
