"""The folder of one training run, and the rules for using it twice."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import read_marker, write_json

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

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint of the end of the training, or of its last epoch so far."""
        return self.checkpoints / "checkpoint_last.pt"

    def require_best_checkpoint(self) -> Path:
        """Return the best checkpoint; that there is none is an error."""
        if not self.best_checkpoint.is_file():
            raise UserError(
                f"{self.best_checkpoint}: no such file; train first (it is written after the "
                "first validation)"
            )
        return self.best_checkpoint

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
        """
        found = read_marker(
            self.path / RECORD,
            f"{self.path} is not a run (it has no {RECORD}); make one with: "
            f"deltasam train RECIPE --data DIR --save-dir {self.path}",
        )
        last = found["starts"][-1] if found.get("starts") else {}
        if "began" in last and "seconds" not in last and self.log.exists():
            began = datetime.strptime(last["began"], TIME).timestamp()
            last["seconds"] = round(max(self.log.stat().st_mtime - began, 0), 1)
        return found

    def write_record(self, record: dict[str, Any]) -> None:
        """Write ``run.json``, all or nothing."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / RECORD, record)

    def require_choice(self, *, resume: bool, restart: bool) -> None:
        """Make sure that a run is neither continued nor begun again by accident."""
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
        """Make sure that a continued run has these values in ``run.json``."""
        record = self.record()
        for name, value in wanted.items():
            if record[name] != value:
                raise UserError(
                    f"{self.path} was trained with {name} {record[name]}, not {value}; resume with "
                    "the same, or give another --save-dir"
                )

    def move_aside(self) -> Path | None:
        """Give the folder a dated name, and return it; none if there was nothing to move."""
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
