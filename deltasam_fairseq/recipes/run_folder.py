"""The folder of one training run, and the rules for using it twice."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.json_file import read_json
from deltasam_fairseq.errors import UserError

RECORD = "run.json"

#: How records write times.
TIME = "%Y-%m-%dT%H:%M:%S%z"


def now() -> str:
    """Return the time, as records hold it."""
    return time.strftime(TIME)


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its things.

    ================  =========================================================
    ``run.json``      what was run, where, when
    ``train.log``     all that fairseq-train said
    ``checkpoints/``  fairseq's checkpoints
    ``generate-…/``   what ``deltasam evaluate`` made of a split; ``predict-…/`` of labels
    ================  =========================================================

    Args:
        path: The folder.
    """

    path: Path

    @property
    def log(self) -> Path:
        """What fairseq-train said."""
        return self.path / "train.log"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint that did best in validation, by ``--best-checkpoint-metric``."""
        return self.checkpoints / "checkpoint_best.pt"

    def results(self, split: str) -> Path:
        """Return the folder of what was generated for a split."""
        return self.path / f"generate-{split}"

    def predictions(self, split: str) -> Path:
        """Return the folder of what was predicted for a split."""
        return self.path / f"predict-{split}"

    def has_checkpoints(self) -> bool:
        """Tell whether there is anything that a new run would lose."""
        return any(self.checkpoints.glob("*.pt"))

    def can_go_on(self) -> bool:
        """Tell whether there is a last checkpoint, from which fairseq goes on.

        Returns:
            False as well if there is a best one alone: fairseq writes it first, and with
            ``--no-last-checkpoints`` no other.
        """
        return any(self.checkpoints.glob("checkpoint_last*.pt"))  # a suffix for each shard

    def record(self) -> dict[str, Any]:
        """Read ``run.json``.

        Returns:
            Its content. A start that still trains, or was killed, has no end in it, and gets the
            seconds up to its last line in the log.

        Raises:
            UserError: If it is missing or damaged.
        """
        try:
            found = read_json(self.path / RECORD)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{self.path} is not a run (it has no {RECORD}); make one with: "
                f"deltasam train RECIPE --data DIR --save-dir {self.path}"
            ) from None
        last = found["starts"][-1] if found.get("starts") else {}
        if "began" in last and "seconds" not in last and self.log.exists():
            began = datetime.strptime(last["began"], TIME).timestamp()
            last["seconds"] = round(max(self.log.stat().st_mtime - began, 0), 1)
        return found

    def write_record(self, record: dict[str, Any]) -> None:
        """Write ``run.json``, all or nothing.

        Args:
            record: Its content.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        new = self.path / f"{RECORD}.new"
        new.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        new.replace(self.path / RECORD)

    def require_choice(self, *, resume: bool, restart: bool) -> None:
        """Make sure that a run is neither continued nor begun again by accident.

        Args:
            resume: Whether the user asked to continue.
            restart: Whether the user asked to start over.

        Raises:
            UserError: If there are checkpoints and no wish, or a wish to resume and no checkpoint,
                or if the place is taken by something else.
        """
        if self.path.exists() and not self._is_free_or_run():
            raise UserError(f"{self.path} exists and was not made by deltasam train; give another")
        if self.has_checkpoints() and not (resume or restart):
            raise UserError(
                f"{self.path} holds checkpoints of an earlier run: pass --resume to continue it, "
                "or --restart to move it aside and start over"
            )
        if resume and not self.has_checkpoints():
            raise UserError(f"nothing to resume: {self.checkpoints} holds no checkpoint")

    def _is_free_or_run(self) -> bool:
        if not self.path.is_dir():
            return False
        names = {path.name for path in self.path.iterdir()}
        # A start that was killed while it wrote its record leaves nothing else.
        return names <= {f"{RECORD}.new"} or RECORD in names or self.has_checkpoints()

    def require_same(self, **wanted: object) -> None:
        """Make sure that a continued run stays what it was.

        Args:
            wanted: Entries of ``run.json`` and the values that they must have.

        Raises:
            UserError: If an entry has another value.
        """
        record = self.record()
        for name, value in wanted.items():
            if record[name] != value:
                raise UserError(
                    f"{self.path} was trained with {name} {record[name]}, not {value}; resume with "
                    "the same, or give another --save-dir"
                )

    def move_aside(self) -> Path | None:
        """Give the folder a dated name.

        Returns:
            The new place, or none if there was nothing to move.

        Raises:
            UserError: If this process stands in it: names of files would lead to the new place.
        """
        if not self.path.exists():
            return None
        if Path.cwd().is_relative_to(self.path.resolve()):
            raise UserError(
                f"{self.path} cannot be moved aside, as this folder is in it; start "
                "from another folder"
            )
        dated = self.path.with_name(f"{self.path.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        self.path.rename(dated)
        return dated
