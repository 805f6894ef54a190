"""What is in a file, in short."""

from __future__ import annotations

import hashlib
from pathlib import Path

from deltasam_fairseq.errors import UserError


def count_lines(path: Path) -> int:
    """Return the number of lines of a file; of a dictionary of fairseq, its number of words.

    Args:
        path: The file.

    Returns:
        The number.
    """
    with path.open("rb") as file:
        return sum(1 for _ in file)


def file_sha256(path: Path) -> str:
    """Return the hash of a file's content.

    Args:
        path: The file.

    Returns:
        The SHA-256, in hexadecimal digits.

    Raises:
        UserError: If there is no such file.
    """
    total = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    return total.hexdigest()
