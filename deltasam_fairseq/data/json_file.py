"""Reading what this package wrote as JSON, and what may have happened to it since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltasam_fairseq.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        UserError: If it holds something else; the message names the file. A missing file is the
            caller's to explain.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON, and of bytes that are no UTF-8
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return found
