"""docs/support.md says what the tests assert, and every test that it names exists."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from tests.fairseq_plugin import matrix

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    *(*matrix.SINGLE, *matrix.PRECISION, *matrix.WORKERS),
    *(*matrix.INTERPLAY, *matrix.TASK_ROWS, *matrix.FAULTS, *matrix.REFUSALS),
]


def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("page", ROOT / "scripts" / "support_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date() -> None:
    script = page()
    assert script.PAGE.read_text(encoding="utf-8") == script.render(), (
        "run python scripts/support_page.py --write"
    )


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / "fairseq_plugin" / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.setting)
def test_every_cell_has_its_test(row: matrix.Row) -> None:
    file, name = row.test.split("::")
    assert name in functions_of(file)
    assert len(row.cells) == len(matrix.METHODS)
