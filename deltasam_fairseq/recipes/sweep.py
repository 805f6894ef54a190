"""Running the cells of a sweep: train, evaluate, record, one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.data.labelled_sentences import PreparedSentences
from deltasam_fairseq.data.prepared import PreparedCorpus
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.adversarial_risk import measure_risk, on_cpu
from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.checks_before_training import check_data
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.sweep_folder import SweepFolder
from deltasam_fairseq.recipes.sweep_plan import Cell
from deltasam_fairseq.recipes.sweep_record import make_record
from deltasam_fairseq.recipes.training import TrainRequest, train


@dataclass(frozen=True)
class Sweep:
    """What the runs of a sweep have in common.

    Args:
        recipe: What to train.
        data: On what.
        model: Name of the pretrained model.
        encoder: Its folder.
        folder: Where to keep it all.
        overrides: Further flags of fairseq, for every run.
        precision: One of ``PRECISIONS``; none is the recipe's own.
        gpus: None leaves it to the recipe.
        risk: Radius of the adversarial risk to measure as well; none measures none.
        keep: Whether the best checkpoints stay; the last ones go when a run is recorded.
        recipe_file: Where the recipe is from, if it is not one of an installed package.
    """

    recipe: Recipe
    data: PreparedCorpus
    model: str
    encoder: PreparedEncoder
    folder: SweepFolder
    overrides: Sequence[str] = field(default=())
    precision: str | None = None
    gpus: int | None = None
    risk: float | None = None
    keep: bool = True
    recipe_file: Path | None = None

    def common(self) -> dict[str, Any]:
        """Return what must be the same when the sweep is continued."""
        return {
            "recipe": self.recipe.name,
            "recipe_version": self.recipe.version,
            "model": self.model,
            "data_sha256": self.data.sha256,
            "encoder_sha256": self.encoder.facts["sha256"],
            "overrides": list(self.overrides),
            "precision": self.precision,
            "gpus": self.gpus,
        }

    def request(self, cell: Cell) -> TrainRequest:
        """Return what is asked of ``train`` for one run."""
        return TrainRequest(
            recipe=self.recipe,
            data=self.data,
            run=RunFolder(self.folder.cell(cell.name)),
            method=cell.method,
            seed=cell.seed,
            overrides=[*self.overrides, *cell.overrides()],
            gpus=self.gpus,
            precision=self.precision,
            model=self.model,
            checkpoint=self.encoder,
            recipe_file=self.recipe_file,
        )


@dataclass
class Outcome:
    """What became of the cells.

    Args:
        finished: Names of those that have a record now.
        skipped: Of those that had one before.
        elsewhere: Of those that another process works on.
        failed: Messages by name.
    """

    finished: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """Return one line."""
        parts = {
            "finished": self.finished,
            "finished before": self.skipped,
            "with another process": self.elsewhere,
            "failed": self.failed,
        }
        return ", ".join(f"{len(names)} {what}" for what, names in parts.items() if names)


def run_sweep(
    sweep: Sweep, cells: Sequence[Cell], *, say: Callable[[str], None] = print
) -> Outcome:
    """Return what became of the cells, after those were run that were not finished.

    A run that was broken off goes on from its last checkpoint, or is begun again if it has
    none. One that fails does not keep the others from running; data of another task, flags that
    no run can have, and an adversarial risk that the task has not or at a second radius stop all
    before the first.

    Args:
        sweep: What they have in common.
        cells: The runs.
        say: Told what happens, line by line.
    """
    _check(sweep, cells)
    sweep.folder.claim(sweep.common())
    outcome = Outcome()
    for number, cell in enumerate(cells, start=1):
        where = f"{number} of {len(cells)}, {cell.name}"
        with sweep.folder.locked(cell.name) as lock:
            if lock is None:
                say(f"{where}: another process works on it")
                outcome.elsewhere.append(cell.name)
                continue
            record = sweep.folder.record(cell.name)
            if record is not None and not _lacks_risk(sweep, record):
                outcome.skipped.append(cell.name)
                continue
            say(f"{where}: {'begins' if record is None else 'lacks its adversarial risk'}")
            try:
                if record is None:
                    record = _run_cell(sweep, cell, lock, say)
                    sweep.folder.write_record(cell.name, record)
                if _lacks_risk(sweep, record):
                    record = _with_risk(sweep, cell, record, say)
                    sweep.folder.write_record(cell.name, record)
                _tidy(sweep, cell)
            except (UserError, OSError) as error:
                say(f"{where}: failed: {error}")
                outcome.failed[cell.name] = str(error)
                continue
            metric = sweep.recipe.metric
            say(f"{where}: {metric} {record['metrics'][metric]:.2f}")
            outcome.finished.append(cell.name)
    return outcome


def _check(sweep: Sweep, cells: Sequence[Cell]) -> None:
    check_data(sweep.recipe, sweep.data)
    if sweep.risk is not None and not isinstance(sweep.data, PreparedSentences):
        raise UserError(
            f"the recipe {sweep.recipe.name} has no adversarial risk; leave --adversarial-risk out"
        )
    for cell in cells:
        sweep.request(cell).command(check=False)
        found = (sweep.folder.record(cell.name) or {}).get("adversarial_risk")
        if found and sweep.risk not in (None, found["rho"]):
            raise UserError(
                f"{cell.name} has its adversarial risk at {found['rho']} in its record, and tables "
                f"compare one radius, so it cannot have one at {sweep.risk}; deltasam analyse "
                f"adversarial-risk {sweep.folder.cell(cell.name)} --rho {sweep.risk} measures it "
                "beside the record"
            )


def _run_cell(sweep: Sweep, cell: Cell, lock: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Train a run, or go on with it, and evaluate it."""
    request = sweep.request(cell)
    run = request.run
    began = run.has_checkpoints()
    if not (began and run.record()["finished"]):
        resume = run.can_go_on()
        train(
            request,
            resume=resume,
            restart=began and not resume,
            inherited=[lock],
            say=lambda line: say(f"  {line.strip()}"),
        )
    began_evaluation = time.monotonic()
    kind = sweep.recipe.kind
    scores = kind.scores_of(sweep.recipe, sweep.data, run, cpu=on_cpu(run), say=say)
    seconds = round(time.monotonic() - began_evaluation, 2)
    record = make_record(run, dict(cell.grid), scores)
    return {**record, "seconds": {**record["seconds"], "evaluate": seconds}}


def _lacks_risk(sweep: Sweep, record: dict[str, Any]) -> bool:
    """Tell whether a risk is asked for that a record does not have."""
    return sweep.risk is not None and "adversarial_risk" not in record


def _with_risk(
    sweep: Sweep, cell: Cell, record: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure the risk of a run whose best checkpoint is there, and add it to its record."""
    if sweep.risk is None:
        return record
    began = time.monotonic()
    run = sweep.request(cell).run
    if not run.best_checkpoint.is_file():
        raise UserError(
            f"its adversarial risk cannot be measured any more, {run.best_checkpoint} was "
            "discarded; without --adversarial-risk its record stays as it is"
        )
    found = measure_risk(sweep.data, run, "valid", sweep.risk, say=lambda line: say(f"  {line}"))
    seconds = {**record["seconds"], "adversarial_risk": round(time.monotonic() - began, 2)}
    return {**record, "adversarial_risk": found, "seconds": seconds}


def _tidy(sweep: Sweep, cell: Cell) -> None:
    """Remove the checkpoints that a recorded run has no more use for."""
    run = sweep.request(cell).run
    trained = sweep.recipe.kind.trained(run)
    for path in run.checkpoints.glob("*.pt"):
        if path != trained or not sweep.keep:
            path.unlink()
