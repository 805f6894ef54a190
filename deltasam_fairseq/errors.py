"""The one exception whose text is written for the person at the terminal, and what raises it."""

from __future__ import annotations

from pathlib import Path


class UserError(ValueError):
    """Something the user can put right; its message says what and how.

    The command line prints the message as it is, without a traceback, and
    exits with status 2. A plain ``ValueError`` stays a programming error.
    """


def read_whole(flag: str, value: str) -> int:
    """Read the value of a flag that is a whole number, as fairseq does; else name both."""
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{flag} {value}: not a whole number") from None


def at_least(flag: str, value: float, least: float) -> None:
    """Refuse a number of the command line that is too small, or not a number.

    Args:
        flag: The flag, with its dashes.
        value: What was given.
        least: The smallest value that is allowed.

    Raises:
        UserError: If the value is below, or NaN; the message names flag and value.
    """
    if not value >= least:
        raise UserError(f"{flag} must be at least {least}, got {value}")


def check_place(out: Path, example: str) -> None:
    """Make sure that a file can be written, before anything is computed for it.

    Args:
        out: The file to write.
        example: A name for it, for the message about a folder.

    Raises:
        UserError: If it is a folder or below none.
    """
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file in it, like {out / example}")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}; make it first")
