"""A file's text, length and hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

from deltasam_fairseq.errors import UserError


def read_utf8(path: Path) -> str:
    """Read a text file; a byte-order mark is no part of it.

    Args:
        path: The file.

    Returns:
        Its text, with its ends of lines as they are.

    Raises:
        UserError: If the file is missing or not UTF-8; the message names the line.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 (byte 0x{content[error.start]:02x}); "
            f"convert the file, as in: iconv -f latin1 -t utf-8 {path}"
        ) from None


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
