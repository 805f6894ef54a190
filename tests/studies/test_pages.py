"""The pages of docs/ show what the studies' records hold."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from scripts.studies.shared import read

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.fairseq
@pytest.mark.parametrize(
    "page", ["per_instance", "precision", "estimators", "axis", "hugging_face", "worth"]
)
def test_the_tables_of_the_pages_are_those_of_the_records(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    found = re.findall(
        r"<!-- table: python -m scripts\.studies\.(\w+) --show (.*?) -->\n(.*?)\n<!-- /table -->",
        text,
        re.DOTALL,
    )
    assert found
    for study, names, table in found:
        records = [read(ROOT / name, study) for name in names.split()]
        kept = (ROOT / "scripts" / "studies" / "records").glob(f"{study}_*.json")
        assert sorted(names.split()) == sorted(str(path.relative_to(ROOT)) for path in kept)
        assert table == import_module(f"scripts.studies.{study}").tables(records)
