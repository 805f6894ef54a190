"""Records of runs that never ran, for what is made of records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltasam_fairseq.recipes.sweep_folder import SweepFolder


def write_record(folder: Path, method: str, seed: int, score: float, **changes: Any) -> None:
    """Write the record of a run on RTE below a folder of sweeps, with an accuracy in percent."""
    record: dict[str, Any] = {
        "recipe": "glue/rte",
        "model": "bert_base_cased",
        "method": method,
        "seed": seed,
        "grid": {},
        "flags": {"sam-method": method, "seed": str(seed), "lr": "1e-05"},
        "metrics": {"accuracy": score},
        "n": 277,
        "signature": "glue",
        "data_sha256": "d",
        "encoder_sha256": "e",
        "hardware": {"cpu": "c", "cores": 2},
        "seconds": {"train": 10.0 * seed},
        "updates": 100,
        "interruptions": 0,
        **changes,
    }
    name = f"{method}-{'-'.join(map(str, record['grid'].values()))}-seed{seed}"
    SweepFolder(folder / record["recipe"] / record["model"]).write_record(name, record)


def examples(predictions: Sequence[float], labels: Sequence[float]) -> dict[str, str]:
    """Return what a record keeps of its sentences."""
    lines = {"predictions": predictions, "labels": labels}
    return {"split": "valid", **{name: " ".join(map(str, line)) for name, line in lines.items()}}
