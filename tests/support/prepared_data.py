"""A finished data folder and programs that stand in for fairseq's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.bart import ARCHITECTURES, PreparedBart
from deltasam_fairseq.data.prepared import SPLITS, PreparedData

SOURCES = ["def get leaf (tree): Leaves have no children.", "def add (a, b): Both are numbers."]
TARGETS = ["Get the leaf of a tree.", "Add two numbers."]

#: Hash that stands for BART's dictionary.
DICTIONARY = "b" * 64

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


def finished_data(folder: Path, *, sha256: str = "d" * 64, gpt2: bool = False) -> PreparedData:
    """Write a data folder with two pairs in each split.

    Args:
        folder: The folder to make.
        sha256: Its recorded hash.
        gpt2: Whether it says that its pieces are GPT-2's, in BART's dictionary.
    """
    facts: dict[str, Any] = {"kind": "text", "sha256": sha256}
    if gpt2:
        facts |= {"bpe": "gpt2", "pieces": 50260, "settings": {"dict.txt": DICTIONARY}}
    data = PreparedData(folder, facts)
    data.binary.mkdir(parents=True)
    for split in SPLITS:
        for side, lines in (("source", SOURCES), ("target", TARGETS)):
            path = data.raw(split, side)
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / PreparedData.MARKER).write_text(json.dumps(data.facts))
    return data


def prepared_bart(folder: Path, architecture: str) -> PreparedBart:
    """Write a folder as deltasam prepare bart does, with a checkpoint of four bytes."""
    folder.mkdir()
    (folder / "model.pt").write_bytes(b"BART")
    facts = {
        "kind": "fairseq",
        "sizes": dict(ARCHITECTURES[architecture]),
        "rows": 50265,
        "dict_sha256": DICTIONARY,
        "bytes": 4,
    }
    (folder / PreparedBart.MARKER).write_text(json.dumps(facts))
    return PreparedBart.load(folder)


def program(*statements: str) -> list[str]:
    """Return a command that runs Python statements."""
    return [sys.executable, "-c", "\n".join(statements)]
