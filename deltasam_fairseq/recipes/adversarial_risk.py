"""The adversarial risk of a run, measured in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from deltasam_fairseq.data.prepared import PreparedCorpus
from deltasam_fairseq.data.process import failure, run_logged
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import read_json
from deltasam_fairseq.plugin_path import plugin_dir
from deltasam_fairseq.recipes.command import flag_values
from deltasam_fairseq.recipes.run_folder import RunFolder


def measure_risk(
    data: PreparedCorpus,
    run: RunFolder,
    split: str,
    rho: float,
    *,
    cpu: bool | None = None,
    engine: str = "auto",
    batch_size: int = 32,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure the adversarial risk of a run's best checkpoint, in a process of its own.

    Leaves ``adversarial_risk.json`` and, with the single sentences' losses and norms of
    gradients, ``adversarial_risk_sentences.json`` beside the run's predictions.

    Args:
        data: What the run was trained on.
        run: The run.
        split: Over which sentences.
        rho: Radius of the neighbourhood.
        cpu: Whether to leave a GPU alone; none asks the run's own command.
        engine: ``batched``, ``loop``, or ``auto``: batched where that is exact.
        batch_size: Sentences that the batched engine takes at once.
        say: Told how far it is, and why a batch goes by the loop.

    Returns:
        ``risk``, ``loss``, ``rho``, ``n``, ``split``, ``engine``, ``seconds``.

    Raises:
        UserError: If there is no checkpoint, or the process fails.
    """
    checkpoint = run.require_best_checkpoint()
    folder = run.predictions(split)
    folder.mkdir(parents=True, exist_ok=True)
    out, log = folder / "adversarial_risk.json", folder / "adversarial_risk.log"
    without_gpu = on_cpu(run) if cpu is None else cpu
    command = [
        *(sys.executable, "-m", "deltasam_fairseq.inference", "risk", str(data.binary)),
        *("--path", str(checkpoint), "--split", split, "--rho", repr(rho)),
        *("--user-dir", str(plugin_dir()), "--out", str(out), *(("--cpu",) if without_gpu else ())),
        *("--engine", engine, "--batch-size", str(batch_size)),
    ]
    mark = "adversarial risk: "  # begins what is meant for the user; the rest is fairseq's
    status = run_logged(
        command, log, on_line=lambda line: say(line) if line.startswith(mark) else None
    )
    if status:
        raise UserError(failure("the adversarial risk", status, log))
    return read_json(out)


def on_cpu(run: RunFolder) -> bool:
    """Tell whether a run was told to leave GPUs alone."""
    return "cpu" in flag_values(run.record()["starts"][0]["command"])
