"""The choice of how an update is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltasam_fairseq.fairseq_plugin.instances import BatchedInstances
from deltasam_fairseq.fairseq_plugin.run import Run
from deltasam_fairseq.fairseq_plugin.step import MicroScope, Update, UpdateScope


def begin(trainer: Any, samples: Sequence[Any], run: Run) -> Update:
    """Choose how an update is run.

    Args:
        trainer: fairseq's trainer.
        samples: The micro-batches of this worker's update.
        run: The run's settings and weights; it perturbs this update.

    Returns:
        The update. Every sentence has its own perturbation with
        ``per_instance``, so there the scope makes no difference.
    """
    settings = run.settings
    if settings.method == "per_instance":
        loop = settings.per_instance_engine == "loop"
        return (MicroScope if loop else BatchedInstances)(trainer, samples, run)
    return (MicroScope if settings.scope == "micro" else UpdateScope)(trainer, samples, run)
