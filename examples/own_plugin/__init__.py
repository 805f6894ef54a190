"""A user directory with a criterion of one's own, for every method of the plugin.

    fairseq-train DATA … --user-dir examples/own_plugin --optimizer delta_sam \
        --sam-method per_instance --criterion focal_sentence_prediction --focal-gamma 2

A subclass of ``SentenceCriterion`` says what the loss of each sentence is, and nothing more.
"""

from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F  # noqa: N812
from fairseq.criterions import register_criterion
from fairseq.criterions.sentence_prediction import SentencePredictionCriterion
from fairseq.dataclass import FairseqDataclass

from deltasam_fairseq.fairseq_plugin import register  # noqa: F401
from deltasam_fairseq.fairseq_plugin.criterions.base import SentenceCriterion
from deltasam_fairseq.fairseq_plugin.criterions.readers import SentenceLosses


@dataclass
class FocalConfig(FairseqDataclass):
    """One flag of its own, and two that the task sentence_prediction asks any criterion for."""

    classification_head_name: str = field(default="sentence_classification_head")
    regression_target: bool = field(default=False)
    focal_gamma: float = field(default=2.0, metadata={"help": "0 is cross entropy"})


@register_criterion("focal_sentence_prediction", dataclass=FocalConfig)
class FocalSentencePrediction(SentenceCriterion):
    """Focal loss (Lin et al. 2017): sentences that are certain already count less."""

    def __init__(self, cfg: FocalConfig, task: Any) -> None:
        super().__init__(task)
        self.head = cfg.classification_head_name
        self.gamma = cfg.focal_gamma

    def sentence_losses(self, model: Any, sample: Any) -> SentenceLosses:
        """Return ``(1 - p)^gamma * (-log p)`` of each sentence's class, shape ``(N,)``."""
        logits, _ = model(
            **sample["net_input"], features_only=True, classification_head_name=self.head
        )
        targets = model.get_targets(sample, [logits]).view(-1)
        surprise = F.cross_entropy(logits.float(), targets, reduction="none")
        losses = (1 - (-surprise).exp()) ** self.gamma * surprise
        size = targets.numel()
        counts = {"ntokens": sample["ntokens"], "nsentences": size, "sample_size": size}
        right = (logits.argmax(1) == targets).sum()
        return SentenceLosses(
            losses, size, {"loss": losses.detach().sum(), "ncorrect": right, **counts}
        )

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log what fairseq's ``sentence_prediction`` logs."""
        SentencePredictionCriterion.reduce_metrics(logging_outputs)
