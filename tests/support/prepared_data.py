"""A finished data folder and programs that stand in for fairseq's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deltasam_fairseq.data.prepared import MARKER, SPLITS, PreparedData

SOURCES = ["def get leaf (tree): Leaves have no children.", "def add (a, b): Both are numbers."]
TARGETS = ["Get the leaf of a tree.", "Add two numbers."]

#: Decodes like fairseq-generate, longest first: the second sentence, then the first.
GENERATED = """\
2024-05-01 12:00:00 | INFO | fairseq_cli.generate | loading model(s)
S-1\t▁def ▁add
T-1\t▁Add ▁two ▁number s .
H-1\t-0.5\t▁Add ▁two ▁number s .
D-1\t-0.5\t▁Add ▁two ▁number s .
P-1\t-0.1 -0.2
H-0\t-0.7\t▁Get ▁a ▁lea f .
D-0\t-0.7\t▁Get ▁a ▁lea f .
"""


def finished_data(folder: Path, *, sha256: str = "d" * 64) -> PreparedData:
    """Write a data folder with two pairs in each split.

    Args:
        folder: The folder to make.
        sha256: Its recorded hash.

    Returns:
        The folder.
    """
    data = PreparedData(folder, {"kind": "text", "sha256": sha256})
    data.binary.mkdir(parents=True)
    for split in SPLITS:
        for side, lines in (("source", SOURCES), ("target", TARGETS)):
            path = data.raw(split, side)
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / MARKER).write_text(json.dumps(data.facts))
    return data


def program(*statements: str) -> list[str]:
    """Return a command that runs Python statements.

    Args:
        statements: One per line.

    Returns:
        Program and arguments.
    """
    return [sys.executable, "-c", "\n".join(statements)]
