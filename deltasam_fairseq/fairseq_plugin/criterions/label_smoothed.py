"""Label-smoothed cross entropy of sequences and of language models, with a regularizer.

The plain loss, its meters and its flags are those of fairseq's ``label_smoothed_cross_entropy``
since 0.12: the smoothing is spread over the V - 1 other words.
"""

# No `from __future__ import annotations`: fairseq reads the types of a configuration.
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from omegaconf import II
from torch import Tensor

from deltasam_fairseq.fairseq_plugin.criterions.readers import Sample, SentenceLosses
from deltasam_fairseq.fairseq_plugin.criterions.regularized import (
    RegularizedCriterion,
    RegularizerConfig,
)


@dataclass
class LabelSmoothedConfig(RegularizerConfig):
    """The flags of fairseq's criterion, and the regularizers'."""

    label_smoothing: float = field(
        default=0.0, metadata={"help": "epsilon for label smoothing, 0 means no label smoothing"}
    )
    report_accuracy: bool = field(default=False, metadata={"help": "report accuracy metric"})
    ignore_prefix_size: int = field(default=0, metadata={"help": "Ignore first N tokens"})
    sentence_avg: bool = II("optimization.sentence_avg")


@register_criterion("deltasam_label_smoothed_cross_entropy", dataclass=LabelSmoothedConfig)
class LabelSmoothedCriterion(RegularizedCriterion):
    """The smoothed loss of a sentence's target tokens, summed."""

    def __init__(self, cfg: LabelSmoothedConfig, task: Any) -> None:
        super().__init__(cfg, task)
        if not 0 <= cfg.label_smoothing < 1:
            raise ValueError(
                f"--label-smoothing must be from 0 to below 1, got {cfg.label_smoothing}"
            )
        self.smoothing = cfg.label_smoothing
        self.prefix = cfg.ignore_prefix_size
        self.report_accuracy = cfg.report_accuracy
        self.sentence_avg = cfg.sentence_avg

    def joins(self, trainer: Any) -> None:
        """Refuse a model whose outputs are no scores of all words.

        Args:
            trainer: fairseq's trainer.

        Raises:
            ValueError: If the model has an adaptive softmax.
        """
        decoder = getattr(trainer.get_model(), "decoder", None)
        if getattr(decoder, "adaptive_softmax", None) is not None:
            raise ValueError(
                "--criterion deltasam_label_smoothed_cross_entropy needs a score for every word, "
                "and with an adaptive softmax the model has none; train without "
                "--adaptive-softmax-cutoff, or use --criterion adaptive_loss, which has no "
                "regularizers"
            )
        super().joins(trainer)

    def outputs(self, model: Any, net_input: dict[str, Any]) -> Tensor:  # noqa: D102
        logits: Tensor = model(**net_input)[0]
        return logits[:, self.prefix :]

    def words(self, sample: Sample) -> Tensor:  # noqa: D102
        return self._targets(sample).ne(self.padding_idx)

    def scored(self, model: Any, logits: Tensor, sample: Sample) -> SentenceLosses:  # noqa: D102
        del model
        targets, words = self._targets(sample), self.words(sample)
        wide = torch.promote_types(logits.dtype, torch.float32)
        scores = F.log_softmax(logits, -1, dtype=wide)
        nll = -scores.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        losses = nll = torch.where(words, nll, 0).sum(1)
        if self.smoothing:
            smooth = torch.where(words, -scores.sum(-1), 0).sum(1)
            share = self.smoothing / (scores.shape[-1] - 1)
            losses = (1 - self.smoothing - share) * nll + share * smooth
        size = len(targets) if self.sentence_avg else sample["ntokens"]
        logging_output = {
            "loss": losses.detach().sum(),
            "nll_loss": nll.detach().sum(),
            "ntokens": sample["ntokens"],
            "nsentences": len(targets),
            "sample_size": size,
        }
        if self.report_accuracy:
            right = logits.argmax(-1).eq(targets) & words
            logging_output["n_correct"] = right.sum()
            logging_output["total"] = words.sum()
        return SentenceLosses(losses, size, logging_output)

    def _targets(self, sample: Sample) -> Tensor:
        targets: Tensor = sample["target"][:, self.prefix :]
        return targets

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log fairseq's meters, and the regularizer's value.

        Args:
            logging_outputs: Of all workers.
        """
        LabelSmoothedCrossEntropyCriterion.reduce_metrics(logging_outputs)
        cls.log_penalty(logging_outputs)
