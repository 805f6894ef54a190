"""Running fairseq-train for a recipe, with a record, a log and live progress."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltasam_fairseq.choices import PRECISIONS
from deltasam_fairseq.data.prepared import PreparedCheckpoint, PreparedCorpus
from deltasam_fairseq.data.process import (
    Say,
    failure,
    processor_seconds,
    require_fairseq,
    run_logged,
)
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.checks_before_training import (
    check_data,
    check_start,
    cpu_note,
    start_flags,
)
from deltasam_fairseq.recipes.command import flag_values, train_command
from deltasam_fairseq.recipes.environment_record import environment_record
from deltasam_fairseq.recipes.launch import Launch
from deltasam_fairseq.recipes.methods import PARTS
from deltasam_fairseq.recipes.progress import Progress, duration
from deltasam_fairseq.recipes.run_folder import RunFolder, now
from deltasam_fairseq.settings import setting

DEFAULT_METHOD = "delta_sam"
DEFAULT_SEED = 1


@dataclass(frozen=True)
class TrainRequest:
    """What the user asked for.

    What is left out is the run's own if it is continued, else the recipe's, or the default.

    Args:
        recipe: What to train.
        data: On what.
        run: Where to keep it.
        overrides: Further flags of fairseq.
        checkpoint: What to fine-tune, if the recipe does that; not needed to continue.
        model: Name of the pretrained model, if the recipe fits several.
        recipe_file: Where the recipe is from, if it is not one of an installed package.
    """

    recipe: Recipe
    data: PreparedCorpus
    run: RunFolder
    overrides: Sequence[str] = field(default=())
    checkpoint: PreparedCheckpoint | None = None
    model: str | None = None
    recipe_file: Path | None = None
    method: str | None = setting(
        f"{', '.join(PARTS)}, or a sum of different kinds such as sam+r3f; default: "
        f"{DEFAULT_METHOD}, or the run's own with --resume",
        None,
        metavar="METHOD",
    )
    seed: int | None = setting(f"{DEFAULT_SEED}, or the run's own with --resume", None)
    gpus: int | None = setting(
        "GPUs of one machine; recipes with a fixed number of tokens per update adapt "
        "--update-freq (they take 1 if it is not given)",
        None,
    )
    precision: str | None = setting(
        "default: the recipe's, or the run's with --resume", None, choices=PRECISIONS
    )
    slurm: bool = setting("start it with srun; see docs/cnndm.md", False)

    def command(self, *, resume: bool = False, check: bool = True) -> list[str]:
        """Build the call of fairseq-train.

        Args:
            resume: Whether what is not asked for anew comes from the run's record.
            check: Whether checkpoint and data must be there and fit.

        Returns:
            Program and arguments.
        """
        record = self.run.record() if resume else {}
        method, seed = self._choices(record)
        model = self.model or record.get("model")
        checkpoint = None if resume else self.checkpoint
        chosen = self.lasting(record)
        command = train_command(
            self.recipe.with_model(model) if model else self.recipe,
            data=self.data.binary,
            save_dir=self.run.checkpoints,
            method=method,
            seed=seed,
            overrides=chosen["overrides"],
            start={} if resume else start_flags(self.recipe, checkpoint),
            precision=chosen["precision"],
            launch=Launch(chosen["gpus"], self.slurm),
        )
        if check:
            check_data(self.recipe, self.data)
            check_start(command, checkpoint, self.data)
        return command

    def facts(self) -> dict[str, Any]:
        """Return what identifies the run in its record."""
        method, seed = self._choices({})
        return {
            "recipe": self.recipe.name,
            "recipe_version": self.recipe.version,
            "method": method,
            "seed": seed,
            **self.lasting({}),
            "data": str(self.data.path.resolve()),
            "data_sha256": self.data.sha256,
            "model": self.model,
            "encoder": self._checkpoint_facts("encoder"),
            "recipe_file": self.recipe_file and str(self.recipe_file.resolve()),
            "bart": self._checkpoint_facts("bart"),
        }

    def lasting(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return what may change when a run goes on, and then lasts: the record's, or newer."""
        before, newer = list(record.get("overrides", ())), list(self.overrides)
        same = before[len(before) - len(newer) :] == newer
        return {
            "overrides": before if same else [*before, *newer],
            "gpus": self.gpus or record.get("gpus"),
            "precision": self.precision or record.get("precision"),
        }

    def require_same_run(self) -> None:
        """Check that the run in the folder is the one asked for."""
        wanted: dict[str, object] = {
            "recipe": self.recipe.name,
            "recipe_version": self.recipe.version,
            "data_sha256": self.data.sha256,
        }
        method = self.method and self.recipe.method(self.method).name
        chosen = {"method": method, "seed": self.seed, "model": self.model}
        wanted.update({name: value for name, value in chosen.items() if value is not None})
        self.run.require_same(**wanted)

    def _checkpoint_facts(self, name: str) -> dict[str, Any] | None:
        found = self.checkpoint
        if found is None or found.NAME != name:
            return None
        return {**found.facts, "path": str(found.path.resolve())}

    def _choices(self, record: dict[str, Any]) -> tuple[str, int]:
        typed = self.method or record.get("method", DEFAULT_METHOD)
        method = self.recipe.method(typed).name
        seed = record.get("seed", DEFAULT_SEED) if self.seed is None else self.seed
        return method, seed


def train(
    request: TrainRequest,
    *,
    resume: bool = False,
    restart: bool = False,
    inherited: Sequence[int] = (),
    say: Say = print,
) -> None:
    """Train, and keep a record of it in ``run.json``.

    Args:
        request: What to train, on what, where.
        resume: Continue the run that is there.
        restart: Move the run that is there aside first.
        inherited: File descriptors, of locks, that fairseq-train holds as long as it lives.
        say: Told what happens.

    Raises:
        UserError: If the folder's state and the wishes do not fit, or fairseq-train fails.
    """
    run = request.run
    run.require_choice(resume=resume, restart=restart)
    require_fairseq()
    if request.slurm and shutil.which("srun") is None:
        raise UserError(
            "--slurm needs srun, which is not on PATH; call it on a machine of the cluster, or add "
            "--dry-run to see the command"
        )
    if resume:
        request.require_same_run()
    command = request.command(resume=resume)
    progress = Progress(command, say)
    if resume:
        _require_last(run, command)
        record = run.record()
    else:
        moved = run.move_aside() if restart else None
        if moved:
            say(f"the earlier run is now {moved}")
        record = {**request.facts(), **environment_record(), "finished": False, "starts": []}
    model = record.get("model")
    note = cpu_note(request.recipe.with_model(model) if model else request.recipe, command)
    if note and not request.slurm:  # what the job's machine has is not known here
        say(note)
    start: dict[str, Any] = {"command": command, "began": now(), "ended": None, "status": None}
    record["starts"].append(start)
    run.write_record(record)
    began, used = time.monotonic(), processor_seconds()
    status = None
    try:
        status = run_logged(command, run.log, append=resume, inherited=inherited, on_line=progress)
    finally:  # also after Ctrl-C
        seconds = round(time.monotonic() - began, 1)
        if not request.slurm:  # srun's own time says nothing about the job's
            start["processor_seconds"] = round(processor_seconds() - used, 2)
        start.update(ended=now(), seconds=seconds, status=status)
        record["finished"] = status == 0
        if resume and not status:  # a flag that fairseq refuses would stop every later start
            record.update(request.lasting(record))
        run.write_record(record)
    if status:
        raise UserError(failure("fairseq-train", status, run.log))
    say(f"{run.path}: trained, {duration(seconds)}; log in {run.log}")


def _require_last(run: RunFolder, command: Sequence[str]) -> None:
    if not run.can_go_on() and "restore-file" not in flag_values(command):
        raise UserError(
            f"nothing to resume: {run.checkpoints} has no checkpoint_last.pt, with which fairseq "
            "would go on; it would begin with random weights instead. Pass --restart to move "
            "the run aside and start over"
        )
