"""Aligned text files as the origin of a data folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from deltasam_fairseq.data.aligned import Aligned, hold_out, read_aligned
from deltasam_fairseq.data.pipeline import Origin
from deltasam_fairseq.errors import UserError

_SHARE = 20
_MOST = 1000


@dataclass(frozen=True)
class TextFiles:
    """Source and target file of each split.

    Args:
        train: Training data.
        valid: Validation data, or none to hold some training data out.
        test: Test data, or none to hold some training data out.
    """

    train: tuple[Path, Path]
    valid: tuple[Path, Path] | None = None
    test: tuple[Path, Path] | None = None

    def given(self) -> dict[str, tuple[Path, Path]]:
        """Return the splits that have files."""
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: pair for name, pair in splits.items() if pair is not None}


def text_origin(files: TextFiles, *, held_out: int | None = None) -> Origin:
    """Describe a corpus of aligned text files.

    Args:
        files: The files. They are hashed here and read when they are needed.
        held_out: Number of pairs to hold out for each split without files; when
            left out, one in twenty, 1,000 at most.

    Returns:
        What :func:`~deltasam_fairseq.data.pipeline.prepare` takes.

    Raises:
        UserError: If a file is missing.
    """
    hashes: dict[str, str | int | None] = {"hold_out": held_out}
    for name, pair in files.given().items():
        for side, path in zip(("source", "target"), pair, strict=True):
            try:
                hashes[f"{name}.{side}"] = sha256(path.read_bytes()).hexdigest()
            except FileNotFoundError:
                raise UserError(f"{path}: no such file") from None

    def load(folder: Path) -> Mapping[str, Aligned]:
        splits = {name: read_aligned(*pair) for name, pair in files.given().items()}
        size = held_out or min(_MOST, max(1, len(splits["train"]) // _SHARE))
        for name in ("test", "valid"):
            if name not in splits:
                splits["train"], splits[name] = hold_out(splits["train"], size)
        return splits

    return Origin("text", hashes, load)
