"""The folder of a sweep: records that are never half written, locks, and what it is a sweep of."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import read_json

PLAN = "sweep.json"
RECORDS = "records"
#: What tables take from a record.
_NEEDED = (
    *("recipe", "model", "method", "seed", "grid", "flags", "metrics"),
    *("n", "signature", "data_sha256", "encoder_sha256"),
    *("seconds", "updates", "interruptions", "hardware"),
)


@dataclass(frozen=True)
class SweepFolder:
    """Where a sweep keeps its things.

    =====================  ====================================================
    ``sweep.json``         what every run of it has in common
    ``cells/NAME/``        the run, as ``deltasam train`` leaves it
    ``records/NAME.json``  its record, written when all of it is finished
    ``locks/NAME``         held by the process that works on it
    =====================  ====================================================

    Args:
        path: The folder.
    """

    path: Path

    def cell(self, name: str) -> Path:
        """Return the folder of a run."""
        return self.path / "cells" / name

    def record(self, name: str) -> dict[str, Any] | None:
        """Return the record of a run, or none if it is not finished."""
        path = self.path / RECORDS / f"{name}.json"
        return read_json(path) if path.is_file() else None

    def recorded(self) -> list[str]:
        """Return the names of the finished runs."""
        return sorted(path.stem for path in _visible((self.path / RECORDS).glob("*.json")))

    def write_record(self, name: str, record: dict[str, Any]) -> None:
        """Write the record of a run, all or nothing."""
        path = self.path / RECORDS / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{name}.{os.getpid()}")
        new.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        new.replace(path)

    def claim(self, wanted: dict[str, Any]) -> None:
        """Say what every run of the sweep has in common, or check that it is what was said before.

        Raises:
            UserError: If it is a sweep of something else.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / PLAN
        new = self.path / f".{PLAN}.{os.getpid()}"
        new.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        try:
            os.link(new, path)  # unlike a rename it fails if another sweep was faster
        except FileExistsError:
            found = read_json(path)
            different = [name for name, value in wanted.items() if found.get(name) != value]
            if different:
                raise UserError(
                    f"{self.path} is a sweep with {different[0]} {found.get(different[0])}, not "
                    f"{wanted[different[0]]}; give another --out"
                ) from None
        finally:
            new.unlink()

    @contextmanager
    def locked(self, name: str) -> Iterator[int | None]:
        """Hold the lock of a run; the operating system frees it when the process ends.

        Yields:
            The lock's file descriptor, or none if another process holds it. A program that
            inherits it holds the lock as well, so that nobody goes on with a run whose sweep
            was killed while its fairseq-train lives.
        """
        path = self.path / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            yield file.fileno()


def read_records(folders: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Read all records below folders, each once, wherever links lead.

    Yields:
        The records, in the order of their paths.

    Raises:
        UserError: If a file is no record of a run.
    """
    seen: set[Path] = set()
    for folder in folders:
        for path in _record_files(folder, seen):
            record = read_json(path)
            if missing := [name for name in _NEEDED if name not in record]:
                raise UserError(
                    f"{path} is no record of deltasam sweep: it lacks {', '.join(missing)}; move "
                    f"it out of the folder {RECORDS}"
                )
            yield record


def _record_files(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Yield files of records below a folder whose real paths were not seen yet."""
    for place, folders, names in os.walk(folder, followlinks=True):
        real = Path(place).resolve()
        if real in seen:
            folders.clear()  # a link back, or a folder that was named twice
            continue
        seen.add(real)
        folders.sort()
        if real.name == RECORDS:
            yield from sorted(_visible(Path(place, name) for name in names))


def _visible(paths: Iterable[Path]) -> Iterator[Path]:
    """Leave out what editors and operating systems put beside files."""
    return (path for path in paths if path.suffix == ".json" and not path.name.startswith("."))
