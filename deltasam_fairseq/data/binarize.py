"""The call of fairseq-preprocess."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from deltasam_fairseq.data.prepared import SOURCE, SPLITS, TARGET
from deltasam_fairseq.data.process import failure, fairseq_program, run_logged
from deltasam_fairseq.errors import UserError

_FINISHED = re.compile(r"\] (\S+): (\d+ sents, \d+ tokens, [\d.]+% replaced)")


def preprocess_command(
    pieces: Path, destination: Path, *, workers: int, dictionary: Path | None = None
) -> list[str]:
    """Build the command that turns pieces into fairseq's binary files.

    Args:
        pieces: Folder with ``train.source``, ``train.target`` and so on.
        destination: Folder for dictionaries and binary files.
        workers: Number of processes.
        dictionary: Of both sides; none is the one of all pieces.

    Returns:
        Program and arguments. Source and target share one dictionary.
    """
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
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Run fairseq-preprocess.

    Args:
        pieces: As for :func:`preprocess_command`.
        destination: As for :func:`preprocess_command`.
        workers: As for :func:`preprocess_command`.
        log: File for what the program says.
        dictionary: As for :func:`preprocess_command`.
        say: Told about every file that is finished.

    Raises:
        UserError: If it fails; the message quotes the end of the log.
    """

    def report(line: str) -> None:
        if found := _FINISHED.search(line):
            say(f"  {Path(found.group(1)).name}: {found.group(2)}")

    command = preprocess_command(pieces, destination, workers=workers, dictionary=dictionary)
    status = run_logged(command, log, on_line=report)
    if status:
        raise UserError(failure("fairseq-preprocess", status, log))


def binarize_column(
    files: Mapping[str, Path], destination: Path, *, dictionary: Path, workers: int, log: Path
) -> None:
    """Run fairseq-preprocess on one column of a task on sentences.

    Args:
        files: Tokens by split: ``train``, ``valid``, ``valid1``, ``test`` and so on.
        destination: Folder for the binary files and a copy of the dictionary.
        dictionary: The dictionary.
        workers: Number of processes.
        log: File for what the program says; added to.

    Raises:
        UserError: If it fails; the message quotes the end of the log.
    """
    command = [*fairseq_program("preprocess"), "--only-source", "--workers", str(workers)]
    command += ["--srcdict", str(dictionary), "--destdir", str(destination)]
    for flag in SPLITS:
        chosen = [str(path) for name, path in files.items() if name.rstrip("0123456789") == flag]
        if chosen:
            command += [f"--{flag}pref", ",".join(chosen)]
    status = run_logged(command, log, append=log.exists())
    if status:
        raise UserError(failure("fairseq-preprocess", status, log))
