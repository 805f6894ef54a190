"""The algorithm, on PyTorch alone: sharpness-aware steps for any training loop."""

from deltasam_fairseq.core.covered import Covered
from deltasam_fairseq.core.estimators import ESTIMATORS
from deltasam_fairseq.core.finer_steps import grouped_step, per_instance_step
from deltasam_fairseq.core.optimizer import DeltaSAM
from deltasam_fairseq.core.passes import meet
from deltasam_fairseq.core.perturb import perturbed
from deltasam_fairseq.core.steps import (
    StepReport,
    delta_sam_step,
    plain_step,
    sam_step,
)
from deltasam_fairseq.core.weights import instance_weights

__all__ = [
    "ESTIMATORS",
    "Covered",
    "DeltaSAM",
    "StepReport",
    "delta_sam_step",
    "grouped_step",
    "instance_weights",
    "meet",
    "per_instance_step",
    "perturbed",
    "plain_step",
    "sam_step",
]
