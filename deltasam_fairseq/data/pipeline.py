"""From checked text to a finished data folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from deltasam_fairseq import __version__
from deltasam_fairseq.data.aligned import Aligned
from deltasam_fairseq.data.binarize import binarize
from deltasam_fairseq.data.json_file import read_json
from deltasam_fairseq.data.prepared import MARKER, SOURCE, SPLITS, TARGET, PreparedData
from deltasam_fairseq.data.process import require_fairseq
from deltasam_fairseq.data.tokens import Tokens, sides, write_lines
from deltasam_fairseq.errors import UserError


@dataclass(frozen=True)
class Origin:
    """What a data folder is made from, compared before it is made again.

    Args:
        kind: ``text``, ``docstrings`` or ``cnndm``.
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
    tokens: Tokens,
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
        tokens: How text becomes tokens.
        workers: Number of processes or threads for encoding; the result does not depend on it.
        force: Whether to make it in any case, in the place of one that is there.
        say: Told what happens, line by line.

    Returns:
        The finished folder.
    """
    wanted = {"kind": origin.kind, "inputs": origin.inputs, "settings": tokens.settings()}
    if is_made(out, wanted, force=force):
        say(f"{out}: finished before from the same inputs; nothing to do")
        return PreparedData.load(out)
    require_fairseq()
    with work_folder(out) as work:
        splits = origin.load(work)
        data = PreparedData(work, dict(wanted))
        for name, side, lines in sides(splits):
            write_lines(data.raw(name, side), lines)
        data.facts.update(tokens.write(data, splits, workers=workers, say=say))
        say("binarizing with fairseq-preprocess …")
        binarize(
            work / "pieces",
            data.binary,
            dictionary=tokens.dictionary(data),
            workers=workers,
            log=work / "preprocess.log",
            say=say,
        )
        data.facts["pairs"] = {name: len(splits[name]) for name in SPLITS}
        data.facts["sha256"] = _digest(data, tokens)
        data.facts["versions"] = {
            "deltasam_fairseq": __version__,
            "sentencepiece": metadata.version("sentencepiece"),
        }
        (work / MARKER).write_text(json.dumps(data.facts, indent=2) + "\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        work.rename(out)
    counts = ", ".join(f"{number} {name}" for name, number in data.facts["pairs"].items())
    say(f"{out}: finished; pairs: {counts}; {data.facts['pieces']} pieces")
    return PreparedData.load(out)


def is_made(out: Path, wanted: Mapping[str, Any], *, force: bool) -> bool:
    """Tell whether a data folder is there already.

    Args:
        out: The folder.
        wanted: What it is to be made from.
        force: Whether to make it in any case.

    Returns:
        Whether there is nothing to do.

    Raises:
        UserError: If it is something else, or was made from something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MARKER).is_file():
        raise UserError(
            f"{out} exists and was not made by deltasam prepare; give another --out or remove it"
        )
    if force:
        return False
    different = "; ".join(_differences(read_json(out / MARKER), wanted))
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
def work_folder(out: Path) -> Iterator[Path]:
    """Make a folder beside ``out``; whatever is still there at the end is removed.

    Args:
        out: What it will be renamed to.

    Yields:
        The folder.
    """
    work = out.with_name(f"{out.name}.unfinished-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)  # of a killed process that had the same number
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _digest(data: PreparedData, tokens: Tokens) -> str:
    total = hashlib.sha256()
    for name in SPLITS:
        for side in (SOURCE, TARGET):
            total.update(data.raw(name, side).read_bytes())
    for path in tokens.model_files(data):
        total.update(path.read_bytes())
    return total.hexdigest()
