"""The exact per-instance perturbation in one batched pass (``docs/per_instance.md``)."""

from deltasam_fairseq.per_instance.engine import Ascent, Dealing, Engine
from deltasam_fairseq.per_instance.errors import AmbiguousBatch, Unsupported
from deltasam_fairseq.per_instance.memory_plan import Plan
from deltasam_fairseq.per_instance.rules import LAYER_RULES, LayerRule, layer_rule
from deltasam_fairseq.per_instance.step import (
    batched_per_instance_step,
    per_sentence_gradient_norms,
)

__all__ = [
    "LAYER_RULES",
    "AmbiguousBatch",
    "Ascent",
    "Dealing",
    "Engine",
    "LayerRule",
    "Plan",
    "Unsupported",
    "batched_per_instance_step",
    "layer_rule",
    "per_sentence_gradient_norms",
]
