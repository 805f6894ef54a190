"""Fields of dataclasses that a user sets, described once: for the reader and for ``--help``."""

from __future__ import annotations

from dataclasses import MISSING, field
from typing import Any


def setting(text: str, default: Any = MISSING, *, flags: tuple[str, ...] = (), **how: Any) -> Any:
    """Describe a field that is an option of a command line as well.

    Args:
        text: What it means, for ``--help``; ``%(default)s`` stands for its default.
        default: Its default; without one the option is required.
        flags: Names of the option, if they are not that of the field.
        how: Further arguments of :meth:`argparse.ArgumentParser.add_argument`.

    Returns:
        A field whose metadata hold the description.
    """
    return field(default=default, metadata={"help": text, "flags": flags, "how": how})
