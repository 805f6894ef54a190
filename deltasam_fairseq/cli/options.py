"""Types of options that several verbs share."""

from __future__ import annotations

import argparse


def whole_number(text: str) -> int:
    """Read a whole number greater than zero; the type of an argparse option.

    Args:
        text: As typed.

    Returns:
        The number.

    Raises:
        argparse.ArgumentTypeError: If it is something else.
    """
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number greater than zero")
    return int(text)
