"""Layer rules: one file per family."""

from deltasam_fairseq.per_instance.rules import (  # noqa: F401
    attention,
    elementwise,
    embedding,
    layer_norm,
    linear,
    shared,
)
from deltasam_fairseq.per_instance.rules.base import LAYER_RULES, LayerRule, layer_rule

__all__ = ["LAYER_RULES", "LayerRule", "layer_rule"]
