"""Classification and regression of sentences, with the task's metrics over the whole split.

The loss is that of fairseq's ``sentence_prediction``. fairseq 0.12.2 logs accuracy alone,
later versions others as well, but not with several workers. Here validation collects every
prediction, and the metrics are those of ``deltasam evaluate``: the checkpoint that is best by
one is best by the other.
"""

# No `from __future__ import annotations`: fairseq reads the types of a configuration.
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from fairseq.criterions import register_criterion
from fairseq.criterions.sentence_prediction import SentencePredictionCriterion
from fairseq.logging import metrics
from fairseq.logging.meters import Meter
from torch import Tensor

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.metrics import CLASS_METRICS, NUMBER_METRICS
from deltasam_fairseq.fairseq_plugin.criterions.readers import (
    Sample,
    SentenceLosses,
    refuse_penalties,
)
from deltasam_fairseq.fairseq_plugin.criterions.regularized import (
    RegularizedCriterion,
    RegularizerConfig,
)

_KEPT = "_predictions"
_WANTED = "_metric_"
_VECTORS = ("_seen", "_predicted", "_labels")


@dataclass
class SentenceMetricsConfig(RegularizerConfig):
    """The settings that fairseq's ``sentence_prediction`` has in all versions, and the metrics."""

    classification_head_name: str = field(
        default="sentence_classification_head",
        metadata={"help": "name of the classification head to use"},
    )
    regression_target: bool = field(
        default=False, metadata={"help": "whether the target is a number rather than a class"}
    )
    sentence_metrics: str = field(
        default="accuracy",
        metadata={
            "help": "metrics of validation, separated by commas: accuracy, f1, matthews, or with "
            "--regression-target pearson, spearman"
        },
    )


@register_criterion("deltasam_sentence_prediction", dataclass=SentenceMetricsConfig)
class SentenceMetricsCriterion(RegularizedCriterion):
    """Cross entropy of a sentence's class, or the squared error of its number."""

    def __init__(self, cfg: SentenceMetricsConfig, task: Any) -> None:
        super().__init__(cfg, task)
        self.classification_head_name = cfg.classification_head_name
        self.regression_target = cfg.regression_target
        known = NUMBER_METRICS if self.regression_target else CLASS_METRICS
        self.names = tuple(cfg.sentence_metrics.split(","))
        for name in self.names:
            if name not in known:
                kind = "a regression" if self.regression_target else "classes"
                raise ValueError(
                    f"--sentence-metrics {name}: unknown for {kind}; known: {', '.join(known)}"
                )

    def outputs(self, model: Any, net_input: dict[str, Any]) -> Tensor:  # noqa: D102
        head = self.classification_head_name
        if head not in getattr(model, "classification_heads", ()):
            raise ValueError(
                f"the model has no classification head {head!r}; use --task "
                "sentence_prediction, which adds it, or give --classification-head-name"
            )
        refuse_penalties(model)
        logits: Tensor
        logits, _ = model(**net_input, features_only=True, classification_head_name=head)
        if self.regression_target:
            return logits.view(-1).to(torch.promote_types(logits.dtype, torch.float32))
        return logits

    def scored(self, model: Any, logits: Tensor, sample: Sample) -> SentenceLosses:  # noqa: D102
        targets = model.get_targets(sample, [logits]).view(-1)
        if self.regression_target:
            predictions = logits.detach()
            losses = F.mse_loss(logits, targets.to(logits.dtype), reduction="none")
        else:
            predictions = logits.argmax(1)
            wide = torch.promote_types(logits.dtype, torch.float32)
            losses = F.cross_entropy(logits.to(wide), targets, reduction="none")
        size = targets.numel()
        logging_output: dict[str, Any] = {
            "loss": losses.detach().sum(),
            "ntokens": sample["ntokens"],
            "nsentences": size,
            "sample_size": size,
        }
        if not self.regression_target:
            logging_output["ncorrect"] = (predictions == targets).sum()
        if not self.training:
            logging_output |= self._scattered(sample["id"], predictions, targets)
            logging_output |= {f"{_WANTED}{name}": 0 for name in self.names}
        return SentenceLosses(losses, size, logging_output)

    def _scattered(self, ids: Tensor, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Put numbers where the sentences are in their split: fairseq can add these vectors up."""
        length = max(len(dataset) for dataset in self.task.datasets.values())
        values = (torch.ones_like(targets), predictions, targets)
        return {
            key: torch.zeros(length, dtype=torch.float64, device=ids.device).index_add_(
                0, ids, value.to(device=ids.device, dtype=torch.float64)
            )
            for key, value in zip(_VECTORS, values, strict=True)
        }

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log fairseq's meters, and the metrics over all predictions of a validation.

        Args:
            logging_outputs: Of all workers.
        """
        SentencePredictionCriterion.reduce_metrics(logging_outputs)
        cls.log_penalty(logging_outputs)
        kept = [log for log in logging_outputs if _VECTORS[0] in log]
        if not kept:
            return
        metrics.log_custom(Predictions, _KEPT, *(sum(log[key] for log in kept) for key in _VECTORS))
        for name in (key.removeprefix(_WANTED) for key in kept[0] if key.startswith(_WANTED)):
            metrics.log_derived(name, _derived(name))


class Predictions(Meter):
    """All predictions and labels of a validation; it has no value of its own."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._sums: list[Any] = [0, 0, 0]

    def update(self, *vectors: Tensor) -> None:
        """Add some sentences."""
        self._sums = [old + new.cpu() for old, new in zip(self._sums, vectors, strict=True)]

    def sides(self) -> tuple[list[float], list[float]]:
        """Return predictions and labels."""
        seen, predictions, labels = self._sums
        return predictions[seen > 0].tolist(), labels[seen > 0].tolist()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a validation is not continued."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing."""

    @property
    def smoothed_value(self) -> int:
        """The number of predictions; never shown, as the meter's name begins with ``_``."""
        return len(self.sides()[0])


def _derived(name: str) -> Any:
    """Return the function that fairseq calls for the value of a metric."""
    return lambda meters: 100 * score(name, *meters[_KEPT].sides())


def score(name: str, predictions: list[float], labels: list[float]) -> float:
    """Compute one metric.

    Args:
        name: Its name.
        predictions: Classes or numbers.
        labels: The true ones.

    Returns:
        A fraction. A correlation with a constant counts as none here, where the
        worst checkpoint needs a value too, as in the evaluation of runs.
    """
    if name in CLASS_METRICS:
        sides = ([str(int(value)) for value in side] for side in (predictions, labels))
        return CLASS_METRICS[name](*sides)
    try:
        return NUMBER_METRICS[name](predictions, labels)
    except UserError:
        return 0.0
