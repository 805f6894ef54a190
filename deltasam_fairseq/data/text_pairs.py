"""Pairs of texts: where they are from, and how they become a data folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.aligned import Aligned, Splits, hold_out, read_aligned
from deltasam_fairseq.data.binarize import binarize
from deltasam_fairseq.data.pipeline import make_corpus
from deltasam_fairseq.data.prepared import SOURCE, SPLITS, TARGET, PreparedData
from deltasam_fairseq.data.process import Say
from deltasam_fairseq.data.tokens import Tokens, sides
from deltasam_fairseq.files import file_sha256, write_lines

_SHARE = 20
_MOST = 1000


@dataclass(frozen=True)
class TextFiles:
    """Source and target file of each split; pairs for one that is missing are held out."""

    train: tuple[Path, Path]
    valid: tuple[Path, Path] | None = None
    test: tuple[Path, Path] | None = None

    def given(self) -> dict[str, tuple[Path, Path]]:
        """Return the splits that have files."""
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: pair for name, pair in splits.items() if pair is not None}

    def hashes(self) -> dict[str, str]:
        """Hash the files, by split and side."""
        return {
            f"{name}.{side}": file_sha256(path)
            for name, pair in self.given().items()
            for side, path in zip((SOURCE, TARGET), pair, strict=True)
        }


@dataclass(frozen=True)
class Origin:
    """What a data folder is made from, compared before it is made again.

    Args:
        kind: ``text`` or ``cnndm``.
        inputs: What the text depends on, in JSON's types.
        load: Reads or builds the splits, given the growing folder, where it may leave files
            of its own; called only if the folder has to be made.
    """

    kind: str
    inputs: dict[str, Any]
    load: Callable[[Path], Splits]


def text_origin(files: TextFiles, *, held_out: int | None = None) -> Origin:
    """Describe aligned files, which are hashed here and read when needed."""

    def load(folder: Path) -> Splits:
        splits = {name: read_aligned(*pair) for name, pair in files.given().items()}
        return with_held_out(splits, held_out)

    return Origin("text", {"hold_out": held_out, **files.hashes()}, load)


def with_held_out(splits: Splits, size: int | None) -> dict[str, Aligned]:
    """Hold pairs out for each missing split; by default one in twenty, 1,000 at most."""
    found = dict(splits)
    size = size or min(_MOST, max(1, len(found["train"]) // _SHARE))
    for name in ("test", "valid"):
        if name not in found:
            found["train"], found[name] = hold_out(found["train"], size)
    return found


def prepare_pairs(
    out: Path,
    origin: Origin,
    tokens: Tokens,
    *,
    workers: int = 1,
    force: bool = False,
    say: Say = print,
) -> PreparedData:
    """Make a folder of pairs of texts, or find that it is there; see :func:`make_corpus`."""

    def build(data: PreparedData) -> str:
        splits = origin.load(data.path)
        for name, side, lines in sides(splits):
            write_lines(data.raw(name, side), lines)
        data.facts.update(tokens.write(data, splits, workers=workers, say=say))
        say("binarizing with fairseq-preprocess …")
        binarize(
            data.path / "pieces",
            data.binary,
            dictionary=tokens.dictionary(data),
            workers=workers,
            log=data.path / "preprocess.log",
            say=say,
        )
        data.facts["pairs"] = {name: len(splits[name]) for name in SPLITS}
        data.facts["sha256"] = _digest(data, tokens)
        counts = ", ".join(f"{number} {name}" for name, number in data.facts["pairs"].items())
        return f"pairs: {counts}; {data.facts['pieces']} pieces"

    wanted = {"kind": origin.kind, "inputs": origin.inputs, "settings": tokens.settings()}
    return make_corpus(
        out, PreparedData, wanted, build, libraries=("sentencepiece",), force=force, say=say
    )


def _digest(data: PreparedData, tokens: Tokens) -> str:
    total = hashlib.sha256()
    for name in SPLITS:
        for side in (SOURCE, TARGET):
            total.update(data.raw(name, side).read_bytes())
    for path in tokens.model_files(data):
        total.update(path.read_bytes())
    return total.hexdigest()
