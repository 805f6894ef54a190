"""Aligned text files as the origin of a data folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.aligned import Aligned, hold_out, read_aligned
from deltasam_fairseq.data.files import file_sha256
from deltasam_fairseq.data.pipeline import Origin
from deltasam_fairseq.data.prepared import SOURCE, TARGET

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
    """
    inputs: dict[str, Any] = {"hold_out": held_out, **text_inputs(files)}

    def load(folder: Path) -> Mapping[str, Aligned]:
        splits = {name: read_aligned(*pair) for name, pair in files.given().items()}
        size = held_out or default_hold_out(len(splits["train"]))
        for name in ("test", "valid"):
            if name not in splits:
                splits["train"], splits[name] = hold_out(splits["train"], size)
        return splits

    return Origin("text", inputs, load)


def text_inputs(files: TextFiles) -> dict[str, str]:
    """Hash the files of a corpus.

    Args:
        files: The files.

    Returns:
        Hashes by split and side.
    """
    return {
        f"{name}.{side}": file_sha256(path)
        for name, pair in files.given().items()
        for side, path in zip((SOURCE, TARGET), pair, strict=True)
    }


def default_hold_out(pairs: int) -> int:
    """Return how many of so many training pairs to hold out for a split.

    Args:
        pairs: Number of training pairs.

    Returns:
        One in twenty, 1,000 at most.
    """
    return min(_MOST, max(1, pairs // _SHARE))
