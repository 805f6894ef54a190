"""What is wrong with a checkpoint that does not load, and which others do.

torch does not say: a file that was cut off is an "internal miniz error", one
that holds something else a reason to switch a protection off, and one with a
flipped bit loads without a word.
"""

from __future__ import annotations

import os
import re
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# How many of a folder's checkpoints, newest first, are offered in place of another.
OFFERED = 5

# What torch says of a name that it does not know, and of an object of an unknown class.
_REFUSED = re.compile(r"GLOBAL ([\w.]+)|<class '([\w.]+)'>")

Load = Callable[[str], dict[str, Any]]


def damage(path: str) -> str | None:
    """Look for damage in the file itself, before anything in it is believed.

    Args:
        path: A file.

    Returns:
        What is wrong with it, to follow its name. ``None`` for a whole archive,
        and for a file in a format without checksums (torch's before 1.6).
    """
    size = os.path.getsize(path)
    if size == 0:
        return "is empty"
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return None
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip() if _has_checksums() else None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError):
        return f"is cut off or overwritten: after {size:,} bytes the end of its archive is missing"
    return None if wrong is None else f"is damaged: {wrong} in it does not match its checksum"


def reason(path: str, error: Exception) -> str:
    """Say why a checkpoint did not load.

    Args:
        path: The file.
        error: What came of loading it.

    Returns:
        The reason, to follow the file's name.
    """
    try:
        found = damage(path)
    except OSError as unreadable:
        return f"cannot be read: {unreadable.strerror or unreadable}"
    if found is not None:
        return found
    refused = _REFUSED.search(str(error))
    if refused:
        return (
            f"holds {refused[1] or refused[2]}, which torch does not load, as that may run code, "
            "unless told that it is harmless. If you know that it is, tell torch in your user "
            "directory, with torch.serialization.add_safe_globals. If you trust the whole file, "
            "set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 before the same command"
        )
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:1] != b"\x80" and start != b"PK\x03\x04":
        return "is no checkpoint, or one that was overwritten: torch.save begins a file otherwise"
    if "weights_only" in str(error):
        return "is damaged, or in a format that torch does not load any more"
    text = str(error).strip().splitlines() or [""]
    return f"cannot be loaded as a checkpoint of fairseq's ({type(error).__name__}: {text[0]})"


def explain(path: str, error: Exception, load: Load, *, suffix: str, flag: str) -> str:
    """Say why a checkpoint did not load, and with which flag training can go on.

    Args:
        path: The file.
        error: What came of loading it.
        load: fairseq's function that loads a checkpoint.
        suffix: What fairseq puts before ``.pt`` (``--checkpoint-suffix``).
        flag: The flag that names a checkpoint.

    Returns:
        Some lines for the person at the terminal.
    """
    folder = Path(path).parent
    lines = [f"{path} {reason(path, error)}."]
    others = list(_others(path, load, suffix))
    if others:
        lines += [f"In {folder} these load, newest first; start again with one of them:"]
        lines += [f"  {flag} {shlex.quote(other)}  ({what})" for other, what in others]
    else:
        lines += [f"No other checkpoint in {folder} loads. Without the file, training starts over."]
    return "\n".join(lines)


def _others(path: str, load: Load, suffix: str) -> list[tuple[str, str]]:
    """List other checkpoints of the folder that load, as the flag names them, newest first."""
    end = f"{suffix}.pt"
    names = [p for p in Path(path).parent.glob(f"checkpoint*{end}") if p.name != Path(path).name]
    found: list[tuple[float, str, str]] = []
    for other in sorted(names, key=os.path.getmtime, reverse=True):
        if len(found) == OFFERED:
            break
        try:
            if damage(str(other)) is not None:
                continue
            state = load(str(other))
            updates = state["optimizer_history"][-1]["num_updates"]
            epoch = state["extra_state"]["train_iterator"]["epoch"]
        except Exception:  # noqa: S112  (whatever it is, this one is no help)
            continue
        name = str(other)[: -len(end)] + ".pt"
        found.append((updates, name, f"epoch {epoch}, {updates} updates"))
    found.sort(key=lambda entry: -entry[0])
    return [(name, what) for _, name, what in found]


def _has_checksums() -> bool:
    """Tell whether torch writes checksums; it does unless told not to."""
    told = getattr(torch.serialization, "get_crc32_options", None)
    return bool(told()) if told is not None else True
