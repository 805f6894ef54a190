"""From inputs to a finished data folder: one workflow for every kind of data."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from deltasam_fairseq import __version__
from deltasam_fairseq.data.prepared import PreparedCorpus
from deltasam_fairseq.data.process import Say, require_fairseq
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import read_json, write_json

Corpus = TypeVar("Corpus", bound=PreparedCorpus)


def make_corpus(
    out: Path,
    kind: type[Corpus],
    wanted: dict[str, Any],
    build: Callable[[Corpus], str],
    *,
    libraries: tuple[str, ...] = (),
    force: bool = False,
    say: Say = print,
) -> Corpus:
    """Make a data folder, or find that it is there already.

    It grows under another name beside ``out`` and is renamed when it is finished, so a folder
    called ``out`` is never half a one. One that was made from something else, or not by this
    function, is not touched: the error says what differs.

    Args:
        out: The folder to make.
        kind: What it holds.
        wanted: What it is made from, in JSON's types: ``kind``, ``inputs``, ``settings``.
        build: Fills the growing folder and its facts, ``sha256`` among them, and returns what it
            holds, for the last line that is said.
        libraries: Distributions whose versions the folder depends on.
        force: Whether to make it in any case, in the place of one that is there.
        say: Told what happens, line by line.

    Returns:
        The finished folder.
    """
    if _is_made(out, kind.MARKER, wanted, force=force):
        say(f"{out}: finished before from the same inputs; nothing to do")
        return kind.load(out)
    require_fairseq()
    with finished_folder(out) as work:
        data = kind(work, dict(wanted))
        holds = build(data)
        versions = {name: metadata.version(name) for name in libraries}
        data.facts["versions"] = {"deltasam_fairseq": __version__, **versions}
        write_json(work / kind.MARKER, data.facts)
    say(f"{out}: finished; {holds}")
    return kind.load(out)


@contextmanager
def finished_folder(out: Path) -> Iterator[Path]:
    """Make a folder beside ``out`` that takes its place at the end, or vanishes after an error.

    Yields:
        The folder beside it, or beside what it links to.

    Raises:
        UserError: If the program was started in it.
    """
    given, out = out, out.resolve()
    if Path.cwd().is_relative_to(out):
        raise UserError(
            f"{given} cannot be replaced, as this folder is in it; start from another folder"
        )
    work = out.with_name(f"{out.name}.unfinished-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)  # of a killed process that had the same number
    work.mkdir(parents=True)
    try:
        yield work
        if out.exists():
            shutil.rmtree(out)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_made(out: Path, marker: str, wanted: Mapping[str, Any], *, force: bool) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / marker).is_file():
        raise UserError(
            f"{out} exists and was not made by deltasam prepare; give another --out or remove it"
        )
    if force:
        return False
    different = "; ".join(_differences(read_json(out / marker), wanted))
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
