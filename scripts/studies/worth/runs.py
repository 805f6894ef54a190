"""Running what the plan has, with ``deltasam sweep``, and collecting what came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltasam_fairseq.cli.main import main as deltasam
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.glue import glue_scores
from deltasam_fairseq.recipes.sweep_folder import SweepFolder
from scripts.studies.worth.data import write_tables
from scripts.studies.worth.plan import RISK_RADIUS, Condition

MODEL = "minilm_l6"


def run_draw(
    condition: Condition, seed: int, systems: Sequence[str], *, glue: Path, encoder: Path, out: Path
) -> None:
    """Train what is missing of one draw; called again, it goes on where it was broken off.

    Args:
        condition: On what.
        seed: Of the draw, of new weights, the order of the sentences and dropout.
        systems: Names of :data:`~scripts.studies.worth.plan.SYSTEMS`.
        glue: Folder of the tables of GLUE.
        encoder: What ``deltasam prepare encoder`` made.
        out: Where everything of this draw is kept.
    """
    tables, data = out / "tables", out / "data"
    write_tables(condition, seed, glue, tables)
    common = ["--model", MODEL, "--encoder", str(encoder)]
    prepare = ["prepare", condition.recipe, *common, "--glue", str(tables), "--out", str(data)]
    _call([*prepare, "--max-tokens", "64", "--workers", "1"])
    for name in systems:
        sweep = ["sweep", condition.recipe, *common, "--data", str(data), "--out", str(out)]
        ours = ["--seeds", str(seed), "--adversarial-risk", str(RISK_RADIUS)]
        _call(
            [
                *(*sweep, *ours, "--discard-checkpoints", *condition.system(name).arguments()),
                *condition.flags(),
            ]
        )


def _call(arguments: Sequence[str]) -> None:
    status = deltasam(arguments)
    if status:
        raise UserError(f"deltasam {' '.join(arguments)} ended with status {status}")


def collect(out: Path) -> list[dict[str, Any]]:
    """Return what every finished run of all draws in a folder came to, in JSON's types.

    Returns:
        Of each its method, grid, seed and updates; its metric after the last epoch on either
        half of the validation sentences, ``halves``, and after each epoch on all of them,
        ``valid``; the accuracy on its own training labels in the last epoch, ``train``, none of a
        regression; its adversarial risk; seconds of the processor.
    """
    folders = (SweepFolder(path) for path in sorted(out.iterdir()) if path.is_dir())
    return [_summary(record) for folder in folders for record in _records(folder)]


def _records(folder: SweepFolder) -> Iterator[dict[str, Any]]:
    for name in folder.recorded():
        record = folder.record(name)
        if record is not None and "adversarial_risk" in record:
            yield record


def _summary(record: Mapping[str, Any]) -> dict[str, Any]:
    task = record["recipe"].removeprefix("glue/")
    metric = next(iter(record["metrics"]))
    found, gold = (record["examples"][what].split() for what in ("predictions", "labels"))
    halves = [glue_scores(task, found[half::2], gold[half::2]).scores[metric] for half in (0, 1)]
    epochs = record["epochs"]
    risk = record["adversarial_risk"]
    return {
        "method": record["method"],
        "grid": record["grid"],
        "seed": record["seed"],
        "updates": record["updates"],
        "metric": metric,
        "halves": [round(score, 3) for score in halves],
        "valid": [epoch[metric] for epoch in epochs["valid"]],
        "train": epochs["train"][-1].get("accuracy"),
        "risk": round(risk["risk"], 5),
        "loss": round(risk["loss"], 5),
        "seconds": record["seconds"].get("train_processor"),
    }
