"""From checked text to a finished data folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from deltasam_fairseq import __version__
from deltasam_fairseq.data import pieces
from deltasam_fairseq.data.aligned import Aligned
from deltasam_fairseq.data.binarize import binarize
from deltasam_fairseq.data.prepared import MARKER, SOURCE, SPLITS, TARGET, PreparedData
from deltasam_fairseq.data.process import require_fairseq
from deltasam_fairseq.errors import UserError


@dataclass(frozen=True)
class TokenSettings:
    """How text becomes tokens.

    Args:
        vocab_size: Pieces of the joint sentencepiece model.
        max_source_tokens: Sources are cut here, in pieces.
        max_target_tokens: Targets are cut here, in pieces; references for scoring are not.
    """

    vocab_size: int = 8000
    max_source_tokens: int = 512
    max_target_tokens: int = 128


@dataclass(frozen=True)
class Origin:
    """What a data folder is made from, compared before it is made again.

    Args:
        kind: ``text`` or ``docstrings``.
        inputs: What the text depends on, in JSON's types.
        load: Reads or builds the splits, given the growing folder, where it may leave files
            of its own; called only if the folder has to be made.
    """

    kind: str
    inputs: dict[str, Any]
    load: Callable[[Path], Mapping[str, Aligned]]


def prepare(
    out: Path,
    origin: Origin,
    tokens: TokenSettings,
    *,
    workers: int = 1,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> PreparedData:
    """Make a data folder, or find that it is there already.

    It grows under another name beside ``out`` and is renamed when it is
    finished, so a folder called ``out`` is never half a one. One that was made
    from something else, or not by this function, is not touched: the error
    says what differs.

    Args:
        out: The folder to make.
        origin: What it is made from.
        tokens: Piece model and lengths.
        workers: Number of processes or threads for encoding; the result does not depend on it.
        force: Whether to make it in any case, in the place of one that is there.
        say: Told what happens, line by line.

    Returns:
        The finished folder.
    """
    wanted = {"kind": origin.kind, "inputs": origin.inputs, "settings": asdict(tokens)}
    if _is_made(out, wanted, force=force):
        say(f"{out}: finished before from the same inputs; nothing to do")
        return PreparedData.load(out)
    require_fairseq()
    with _work_folder(out) as work:
        splits = origin.load(work)
        data = PreparedData(work, dict(wanted))
        _write_texts(data, splits)
        size = _train_pieces(data, splits["train"], tokens, say)
        _write_pieces(data, splits, tokens, workers)
        say("binarizing with fairseq-preprocess …")
        binarize(work / "pieces", data.binary, workers=workers, log=work / "preprocess.log")
        data.facts["pairs"] = {name: len(splits[name]) for name in SPLITS}
        data.facts["pieces"] = size
        data.facts["sha256"] = _digest(data)
        data.facts["versions"] = {
            "deltasam_fairseq": __version__,
            "sentencepiece": metadata.version("sentencepiece"),
        }
        (work / MARKER).write_text(json.dumps(data.facts, indent=2) + "\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        work.rename(out)
    counts = ", ".join(f"{number} {name}" for name, number in data.facts["pairs"].items())
    say(f"{out}: finished; pairs: {counts}; {size} pieces")
    return PreparedData.load(out)


def _is_made(out: Path, wanted: Mapping[str, Any], *, force: bool) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MARKER).is_file():
        raise UserError(
            f"{out} exists and was not made by deltasam prepare; give another --out or remove it"
        )
    if force:
        return False
    different = "; ".join(_differences(PreparedData.load(out).facts, wanted))
    if different:
        raise UserError(
            f"{out} was made from other inputs: {different}. "
            "Pass --force to replace it, or another --out"
        )
    return True


def _differences(facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    for key, new in wanted.items():
        old = facts.get(key)
        if isinstance(new, dict) and isinstance(old, dict):
            for name in sorted({*new, *old}):
                if old.get(name) != new.get(name):
                    yield f"{name} was {old.get(name)}, now {new.get(name)}"
        elif old != new:
            yield f"{key} was {old}, now {new}"


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """Make a folder beside ``out``; whatever is still there at the end is removed."""
    work = out.with_name(f"{out.name}.unfinished-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)  # of a killed process that had the same number
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sides(
    data: PreparedData, splits: Mapping[str, Aligned]
) -> Iterator[tuple[str, str, list[str]]]:
    for name in SPLITS:
        yield name, SOURCE, splits[name].sources
        yield name, TARGET, splits[name].targets


def _write_texts(data: PreparedData, splits: Mapping[str, Aligned]) -> None:
    for name, side, lines in _sides(data, splits):
        _write_lines(data.raw(name, side), lines)


def _train_pieces(
    data: PreparedData, train: Aligned, tokens: TokenSettings, say: Callable[[str], None]
) -> int:
    # A word is at least one piece: what lies behind so many words is cut off anyway.
    sources = [" ".join(text.split()[: tokens.max_source_tokens]) for text in train.sources]
    say(f"training sentencepiece on {len(train)} training pairs …")
    began = time.monotonic()
    size = pieces.train_model([*sources, *train.targets], data.model, vocab_size=tokens.vocab_size)
    wish = "" if size == tokens.vocab_size else f" (of {tokens.vocab_size}: the text gives no more)"
    say(f"sentencepiece: {size} pieces{wish}, {time.monotonic() - began:.0f} s")
    return size


def _write_pieces(
    data: PreparedData, splits: Mapping[str, Aligned], tokens: TokenSettings, workers: int
) -> None:
    limits = {SOURCE: tokens.max_source_tokens, TARGET: tokens.max_target_tokens}
    for name, side, lines in _sides(data, splits):
        encoded = pieces.encode(lines, data.model, max_tokens=limits[side], workers=workers)
        _write_lines(data.pieces(name, side), encoded)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def _digest(data: PreparedData) -> str:
    total = hashlib.sha256()
    for name in SPLITS:
        for side in (SOURCE, TARGET):
            total.update(data.raw(name, side).read_bytes())
    total.update(data.model.read_bytes())
    return total.hexdigest()
