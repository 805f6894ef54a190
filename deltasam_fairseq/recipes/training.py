"""Running fairseq-train for a recipe, with a record, a log and live progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltasam_fairseq.data.prepared import PreparedData
from deltasam_fairseq.data.process import failure, require_fairseq, run_logged
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.command import train_command
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.surroundings import surroundings
from deltasam_fairseq.recipes.train_log import UPDATES, LogLine, parse_line

DEFAULT_METHOD = "delta_sam"
DEFAULT_SEED = 1

_SHOWN = ("loss", "sam_loss", "sharpness", "sam_ess", "sam_fallback", "ups")


@dataclass(frozen=True)
class TrainRequest:
    """What the user asked for.

    Args:
        recipe: What to train.
        data: On what.
        run: Where to keep it.
        method: How the weights are perturbed; none is the run's own if it is
            continued, else ``delta_sam``.
        seed: None is the run's own if it is continued, else 1.
        overrides: Further flags of fairseq.
    """

    recipe: Recipe
    data: PreparedData
    run: RunFolder
    method: str | None = None
    seed: int | None = None
    overrides: Sequence[str] = field(default=())

    def command(self, *, resume: bool = False) -> list[str]:
        """Build the call of fairseq-train.

        Args:
            resume: Whether what is not asked for anew comes from the run's record.

        Returns:
            Program and arguments.
        """
        record = self.run.record() if resume else {}
        method, seed = self._choices(record)
        return train_command(
            self.recipe,
            data=self.data.binary,
            save_dir=self.run.checkpoints,
            method=method,
            seed=seed,
            overrides=[*record.get("overrides", ()), *self.overrides],
        )

    def facts(self) -> dict[str, Any]:
        """Return what identifies the run in its record."""
        method, seed = self._choices({})
        return {
            "recipe": self.recipe.name,
            "recipe_version": self.recipe.version,
            "method": method,
            "seed": seed,
            "overrides": list(self.overrides),
            "data": str(self.data.path.resolve()),
            "data_sha256": self.data.sha256,
        }

    def require_same_run(self) -> None:
        """Check that the run in the folder is the one asked for."""
        wanted: dict[str, object] = {"recipe": self.recipe.name, "data_sha256": self.data.sha256}
        chosen = {"method": self.method, "seed": self.seed}
        wanted.update({name: value for name, value in chosen.items() if value is not None})
        self.run.require_same(**wanted)

    def _choices(self, record: dict[str, Any]) -> tuple[str, int]:
        method = self.method or record.get("method", DEFAULT_METHOD)
        seed = record.get("seed", DEFAULT_SEED) if self.seed is None else self.seed
        return method, seed


def train(
    request: TrainRequest,
    *,
    resume: bool = False,
    restart: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Train, and keep a record of it in ``run.json``.

    Args:
        request: What to train, on what, where.
        resume: Continue the run that is there.
        restart: Move the run that is there aside first.
        say: Told what happens, line by line.

    Raises:
        UserError: If the folder's state and the wishes do not fit, or fairseq-train fails.
    """
    run = request.run
    run.require_choice(resume=resume, restart=restart)
    require_fairseq()
    if resume:
        request.require_same_run()
        record = run.record()
    else:
        moved = run.move_aside() if restart else None
        if moved:
            say(f"the earlier run is now {moved}")
        record = {**request.facts(), **surroundings(), "finished": False, "starts": []}
    command = request.command(resume=resume)
    start: dict[str, Any] = {"command": command, "began": _now(), "ended": None, "status": None}
    record["starts"].append(start)
    run.write_record(record)
    began = time.monotonic()
    status = run_logged(command, run.log, append=resume, on_line=_reporter(command, say))
    seconds = round(time.monotonic() - began, 1)
    start.update(ended=_now(), seconds=seconds, status=status)
    record["finished"] = status == 0
    run.write_record(record)
    if status:
        raise UserError(failure("fairseq-train", status, run.log))
    say(f"{run.path}: trained, {seconds:.0f} s; log in {run.log}")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _reporter(command: Sequence[str], say: Callable[[str], None]) -> Callable[[str], None]:
    """Return a function that shortens fairseq's lines of numbers for a terminal."""
    limit = "--max-update"
    total = f"/{command[command.index(limit) + 1]}" if limit in command else ""

    def report(line: str) -> None:
        entry = parse_line(line)
        if entry:
            say(_summary(entry, total))

    return report


def _summary(entry: LogLine, total: str) -> str:
    values = entry.values
    if entry.tag == UPDATES:
        shown = ", ".join(f"{name} {values[name]:g}" for name in _SHOWN if name in values)
        return f"  update {values['num_updates']:.0f}{total}: {shown}"
    shown = ", ".join(
        f"{name.removeprefix(entry.tag + '_')} {values[name]:g}"
        for name in (f"{entry.tag}_loss", f"{entry.tag}_ppl")
        if name in values
    )
    return f"{entry.tag}: {shown}"
