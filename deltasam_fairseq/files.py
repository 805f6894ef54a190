"""Files as this package reads and writes them: UTF-8, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deltasam_fairseq.errors import UserError


def read_utf8(path: Path) -> str:
    """Read a text file, without its byte-order mark and with its ends of lines as they are.

    Args:
        path: The file.

    Returns:
        Its text.

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


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines, which come without their newlines, to a text file whose folder is made."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


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


def read_marker(path: Path, missing: str) -> dict[str, Any]:
    """Read the JSON file that is written last into a folder; ``missing`` says that it is not."""
    try:
        return read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(missing) from None


def write_json(path: Path, content: object) -> None:
    """Write a JSON file; whoever reads it meets the old content or the new one, never a part."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    new.replace(path)


def count_lines(path: Path) -> int:
    """Return the number of lines of a file; of a dictionary of fairseq, its number of words."""
    with path.open("rb") as file:
        return sum(1 for _ in file)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits.

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
