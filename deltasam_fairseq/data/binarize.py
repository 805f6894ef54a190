"""The call of fairseq-preprocess."""

from __future__ import annotations

from pathlib import Path

from deltasam_fairseq.data.prepared import SOURCE, SPLITS, TARGET
from deltasam_fairseq.data.process import failure, fairseq_program, run_logged
from deltasam_fairseq.errors import UserError


def preprocess_command(pieces: Path, destination: Path, *, workers: int) -> list[str]:
    """Build the command that turns pieces into fairseq's binary files.

    Args:
        pieces: Folder with ``train.source``, ``train.target`` and so on.
        destination: Folder for dictionaries and binary files.
        workers: Number of processes.

    Returns:
        Program and arguments. Source and target share one dictionary.
    """
    prefixes = [part for name in SPLITS for part in (f"--{name}pref", str(pieces / name))]
    return [
        *fairseq_program("preprocess"),
        *("--source-lang", SOURCE, "--target-lang", TARGET),
        *prefixes,
        *("--destdir", str(destination), "--joined-dictionary", "--workers", str(workers)),
    ]


def binarize(pieces: Path, destination: Path, *, workers: int, log: Path) -> None:
    """Run fairseq-preprocess.

    Args:
        pieces: As for :func:`preprocess_command`.
        destination: As for :func:`preprocess_command`.
        workers: As for :func:`preprocess_command`.
        log: File for what the program says.

    Raises:
        UserError: If it fails; the message quotes the end of the log.
    """
    status = run_logged(preprocess_command(pieces, destination, workers=workers), log)
    if status:
        raise UserError(failure("fairseq-preprocess", status, log))
