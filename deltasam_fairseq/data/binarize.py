"""The call of fairseq-preprocess."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from deltasam_fairseq.data.prepared import SOURCE, SPLITS, TARGET
from deltasam_fairseq.data.process import Say, fairseq_program, run_program

_FINISHED = re.compile(r"\] (\S+): (\d+ sents, \d+ tokens, [\d.]+% replaced)")


def preprocess_command(
    pieces: Path, destination: Path, *, workers: int, dictionary: Path | None = None
) -> list[str]:
    """Build the command that turns pieces into binary files, of one dictionary for both sides."""
    words = ["--joined-dictionary"]
    if dictionary is not None:
        words = ["--srcdict", str(dictionary), "--tgtdict", str(dictionary)]
    prefixes = [part for name in SPLITS for part in (f"--{name}pref", str(pieces / name))]
    return [
        *fairseq_program("preprocess"),
        *("--source-lang", SOURCE, "--target-lang", TARGET),
        *prefixes,
        *("--destdir", str(destination), *words, "--workers", str(workers)),
    ]


def binarize(
    pieces: Path,
    destination: Path,
    *,
    workers: int,
    log: Path,
    dictionary: Path | None = None,
    say: Say = lambda line: None,
) -> None:
    """Run :func:`preprocess_command`; say which files are finished."""

    def report(line: str) -> None:
        if found := _FINISHED.search(line):
            say(f"  {Path(found.group(1)).name}: {found.group(2)}")

    command = preprocess_command(pieces, destination, workers=workers, dictionary=dictionary)
    run_program("fairseq-preprocess", command, log, on_line=report)


def binarize_column(
    files: Mapping[str, Path], destination: Path, *, dictionary: Path, workers: int, log: Path
) -> None:
    """Run fairseq-preprocess on one column, ``files`` by split, adding to the log."""
    command = [*fairseq_program("preprocess"), "--only-source", "--workers", str(workers)]
    command += ["--srcdict", str(dictionary), "--destdir", str(destination)]
    for flag in SPLITS:
        chosen = [str(path) for name, path in files.items() if name.rstrip("0123456789") == flag]
        if chosen:
            command += [f"--{flag}pref", ",".join(chosen)]
    run_program("fairseq-preprocess", command, log, append=log.exists())
