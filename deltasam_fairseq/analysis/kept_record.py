"""Records that ``deltasam analyse … --json`` printed, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltasam_fairseq.errors import UserError


def read_record(path: Path, analysis: str) -> dict[str, Any]:
    """Read a record.

    Args:
        path: What ``deltasam analyse ANALYSIS --json`` printed.
        analysis: Name of the analysis.

    Returns:
        The record.

    Raises:
        UserError: If the file is something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(record, dict) or record.get("analysis") != analysis:
        raise UserError(f"{path}: not a record of deltasam analyse {analysis}")
    return record
