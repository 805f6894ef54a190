"""Two files, line by line: reading, checking, holding out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import read_utf8

_SHOWN = 5


@dataclass(frozen=True)
class Aligned:
    """Sources and their targets, in the same order, each text on one line."""

    sources: list[str]
    targets: list[str]

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.sources)


#: The pairs of each split.
Splits = Mapping[str, Aligned]


def read_lines(path: Path) -> list[str]:
    r"""Read the lines of a UTF-8 file, which must have some, with white space collapsed.

    Only ``\n`` and ``\r\n`` end a line. A lone carriage return or one of the
    other characters that :meth:`str.splitlines` breaks at counts as a space:
    CNN/DailyMail articles contain them, and breaking there shifts every
    following line against its summary.

    Returns:
        The lines.

    Raises:
        UserError: If the file is empty.
    """
    text = read_utf8(path)
    if not text:
        raise UserError(f"{path}: the file is empty")
    return [" ".join(line.split()) for line in text.removesuffix("\n").split("\n")]


def read_aligned(source: Path, target: Path) -> Aligned:
    """Read a source file and its target file, as many lines as each other and none empty."""
    pair = Aligned(read_lines(source), read_lines(target))
    if len(pair.sources) != len(pair.targets):
        raise UserError(
            f"{source} has {len(pair.sources)} lines and {target} has {len(pair.targets)}; "
            "line n of one must belong to line n of the other"
        )
    for path, lines in ((source, pair.sources), (target, pair.targets)):
        empty = [number for number, line in enumerate(lines, start=1) if not line]
        if empty:
            some = ", ".join(map(str, empty[:_SHOWN])) + (", …" if len(empty) > _SHOWN else "")
            raise UserError(
                f"{path}: {len(empty)} empty line(s), at {some}; remove them from both files"
            )
    return pair


def hold_out(train: Aligned, size: int) -> tuple[Aligned, Aligned]:
    """Take ``size`` examples out of the training data, or a few more if sources repeat.

    The ones with the smallest SHA-256 of their source go, so the choice is
    reproducible, does not depend on the order of the lines, and puts all
    examples with the same source on the same side.

    Returns:
        What stays and what was taken, both in their old order.

    Raises:
        UserError: If fewer than ``size`` examples would be left to train on.
    """
    digests = [hashlib.sha256(source.encode()).digest() for source in train.sources]
    limit = sorted(digests)[min(size, len(digests)) - 1]
    taken = [index for index, digest in enumerate(digests) if digest <= limit]
    kept = [index for index, digest in enumerate(digests) if digest > limit]
    if len(kept) < size:
        raise UserError(
            f"cannot hold {size} of {len(train)} training pairs out: fewer would be left to train "
            "on; give --valid-source/--valid-target and --test-source/--test-target, or a smaller "
            "--hold-out"
        )
    return _select(train, kept), _select(train, taken)


def _select(pair: Aligned, indices: list[int]) -> Aligned:
    return Aligned([pair.sources[i] for i in indices], [pair.targets[i] for i in indices])
