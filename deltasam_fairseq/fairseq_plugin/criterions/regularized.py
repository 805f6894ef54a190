"""What the criterions of the project share: a regularizer in training, plain losses elsewhere."""

# No `from __future__ import annotations`: fairseq reads the types of a configuration.
import logging
import math
import weakref
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from deltasam_fairseq.core.checks import not_negative, positive
from deltasam_fairseq.core.precision import is_half
from deltasam_fairseq.fairseq_plugin.criterions.base import SentenceCriterion
from deltasam_fairseq.fairseq_plugin.criterions.readers import Sample, SentenceLosses
from deltasam_fairseq.fairseq_plugin.embedding_noise import (
    embedding_noise,
    embeddings_shape,
    encoder_of,
    unwrapped,
)
from deltasam_fairseq.fairseq_plugin.passes import recomputes
from deltasam_fairseq.objectives.regularizers import REGULARIZERS, Batch, Outputs, Settings

logger = logging.getLogger(__name__)

# β of SMART's moving average, at first and after a tenth of the updates.
EARLY, LATE, EARLY_SHARE = 0.99, 0.999, 0.1

# Flags of one regularizer alone, whose other values would do nothing elsewhere.
_OWN = {
    "rdrop_kl_reduction": "rdrop",
    "r3f_noise": "r3f",
    "r3f_eps": "r3f",
    "smart_eps": "smart",
    "smart_step": "smart",
    "smart_sigma": "smart",
    "smart_steps": "smart",
    "smart_bregman": "smart",
}


@dataclass
class RegularizerConfig(FairseqDataclass):
    """The flags of the regularizers."""

    regularizer: str = field(
        default="none",
        metadata={
            "help": "what is added to the loss in training: none, rdrop, r3f, smart, or yours"
        },
    )
    regularizer_weight: float = field(
        default=1.0, metadata={"help": "its factor: R-Drop's alpha, R3F's and SMART's lambda"}
    )
    rdrop_kl_reduction: ChoiceEnum(["mean", "sum"]) = field(  # type: ignore[valid-type]
        default="mean",
        metadata={
            "help": "of the divergence, where the loss is a mean over sentences: mean is the "
            "paper's formula, sum (alpha times the batch's size) what its GLUE code ran"
        },
    )
    r3f_noise: ChoiceEnum(["uniform", "normal"]) = field(  # type: ignore[valid-type]
        default="uniform", metadata={"help": "distribution of R3F's noise on the embeddings"}
    )
    r3f_eps: float = field(
        default=1e-5, metadata={"help": "half width or standard deviation of R3F's noise"}
    )
    smart_eps: float = field(
        default=1e-5, metadata={"help": "largest entry of SMART's noise on the embeddings"}
    )
    smart_step: float = field(
        default=1e-3, metadata={"help": "length of a step of SMART's ascent, in the largest entry"}
    )
    smart_sigma: float = field(
        default=1e-5, metadata={"help": "standard deviation of the noise that SMART starts from"}
    )
    smart_steps: int = field(default=1, metadata={"help": "steps of SMART's ascent"})
    smart_bregman: float = field(
        default=0.0,
        metadata={
            "help": "factor of SMART's divergence from the moving average of the weights (the "
            "paper's mu is 1); needs --store-ema; 0 leaves it out"
        },
    )


class RegularizedCriterion(SentenceCriterion, abstract=True):
    """A criterion that says what its outputs are, and leaves views and penalties to a regularizer.

    A subclass defines :meth:`outputs`, :meth:`scored` and, for tokens, :meth:`words`.
    """

    trainer: Any = None
    logs_penalty: ClassVar[str] = "regularizer"

    def __init__(self, cfg: RegularizerConfig, task: Any) -> None:
        super().__init__(task)
        self.regularizer = REGULARIZERS.get(cfg.regularizer)
        self.weight = not_negative(cfg.regularizer_weight, "--regularizer-weight")
        self.name = cfg.regularizer
        self.is_regularized = self.name != "none"
        defaults = RegularizerConfig()
        for name, owner in _OWN.items():
            if owner != cfg.regularizer and getattr(cfg, name) != getattr(defaults, name):
                flag = "--" + name.replace("_", "-")
                raise ValueError(
                    f"{flag} is of --regularizer {owner}, and --regularizer is {cfg.regularizer}: "
                    "it would do nothing"
                )
        self.settings = Settings(
            weight=self.weight,
            summed=cfg.rdrop_kl_reduction == "sum",
            noise=str(getattr(cfg.r3f_noise, "value", cfg.r3f_noise)),
            r3f_eps=not_negative(cfg.r3f_eps, "--r3f-eps"),
            eps=positive(cfg.smart_eps, "--smart-eps"),
            step=positive(cfg.smart_step, "--smart-step"),
            sigma=not_negative(cfg.smart_sigma, "--smart-sigma"),
            steps=int(positive(cfg.smart_steps, "--smart-steps")),
            bregman=not_negative(cfg.smart_bregman, "--smart-bregman"),
        )
        if cfg.regularizer == "smart":
            self.unbatched = (  # type: ignore[misc]
                "SMART searches for its noise in passes of their own, which would not see the "
                "sentences' perturbations"
            )
        if self.settings.summed:
            self.dependence = (  # type: ignore[misc]
                "with --rdrop-kl-reduction sum the divergence is multiplied by the number of "
                "sentences in the batch"
            )

    def joins(self, trainer: Any) -> None:
        """Refuse a model without embeddings to shift, or a run without the average it compares to.

        Args:
            trainer: fairseq's trainer.

        Raises:
            ValueError: If the regularizer is ``smart`` and activations are recomputed.
        """
        self.trainer = weakref.proxy(trainer)
        noises = {"r3f": self.settings.r3f_eps, "smart": self.settings.eps}
        if self.name in noises:
            model = trainer.get_model()
            encoder_of(model)
            table = next(model.parameters())
            if is_half(table) and noises[self.name] < torch.finfo(table.dtype).eps / 10:
                logger.warning(
                    "noise of %g on half-precision embeddings is mostly rounded away: their "
                    "spacing is about %g of their size. Train with --amp or in fp32, where it "
                    "reaches the model whole",
                    noises[self.name],
                    torch.finfo(table.dtype).eps,
                )
        if self.name == "smart" and recomputes(trainer.get_model()):
            raise ValueError(
                "--regularizer smart differentiates by its noise alone, which fairseq's "
                "--checkpoint-activations and --offload-activations do not allow; train without "
                "them, or take another regularizer"
            )
        if self.settings.bregman:
            moving_average(trainer)

    def outputs(self, model: Any, net_input: dict[str, Any]) -> Tensor:
        """Run the model; return logits ``(N, C)`` or ``(N, T, V)``, or predictions ``(N,)``."""
        raise NotImplementedError

    def words(self, sample: Sample) -> Tensor | None:
        """Return which tokens count, shape ``(N, T)``; ``None`` if outputs are of sentences."""
        del sample
        return None

    def scored(self, model: Any, logits: Tensor, sample: Sample) -> SentenceLosses:
        """Return the plain losses of a view's outputs, and what is logged of them."""
        raise NotImplementedError

    def sentence_losses(self, model: Any, sample: Sample) -> SentenceLosses:
        """Score each sentence, in training with the regularizer.

        Args:
            model: The model, perhaps wrapped for several workers.
            sample: The batch.

        Returns:
            Losses ``(N,)``, the sample size and the logging output, which is that of one view.
        """
        regularizer = self.regularizer if self.training else REGULARIZERS.get("none")
        batch = ModelBatch(self, model, sample)
        found = regularizer(batch, self.settings)
        views = [batch.scored(view) for view in found.shown]
        logging_output = _mean([view.logging_output for view in views])
        losses = found.losses
        if self.training and self.is_regularized:
            losses = losses + self.weight * found.penalty
            logging_output[self.logs_penalty] = found.penalty.detach().sum()
        return SentenceLosses(losses, views[0].sample_size, logging_output)

    @classmethod
    def log_penalty(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the regularizer's value beside the plain meters.

        Args:
            logging_outputs: Of all workers.
        """
        seen = [log for log in logging_outputs if cls.logs_penalty in log]
        size = sum(float(log["sample_size"]) for log in seen)
        if size:
            value = sum(float(log[cls.logs_penalty]) for log in seen) / size
            metrics.log_scalar(cls.logs_penalty, value, size, round=5)


class ModelBatch:
    """A batch of fairseq's, as a regularizer sees it.

    Args:
        criterion: Which outputs and losses are meant.
        model: What runs.
        sample: The batch; it is not changed.
    """

    def __init__(self, criterion: RegularizedCriterion, model: Any, sample: Sample) -> None:
        self._criterion, self._model, self._sample = criterion, model, sample
        self._scored: dict[int, tuple[Outputs, SentenceLosses]] = {}

    def views(self, copies: int, noise: Tensor | None = None) -> list[Outputs]:  # noqa: D102
        inputs = repeated(self._sample["net_input"], copies)
        noised = nullcontext() if noise is None else embedding_noise(self._model, noise)
        with noised:
            logits = self._criterion.outputs(self._model, inputs)
        words = self._criterion.words(self._sample)
        return [Outputs(part, words) for part in logits.chunk(copies)]

    def scored(self, outputs: Outputs) -> SentenceLosses:
        """Score a view, once."""
        if id(outputs) not in self._scored:
            found = self._criterion.scored(self._model, outputs.logits, self._sample)
            self._scored[id(outputs)] = outputs, found
        return self._scored[id(outputs)][1]

    def losses(self, outputs: Outputs) -> Tensor:  # noqa: D102
        return self.scored(outputs).losses

    def noise(self) -> Tensor:  # noqa: D102
        tokens = self._sample["net_input"]["src_tokens"]
        weight = next(self._model.parameters())
        wide = torch.promote_types(weight.dtype, torch.float32)
        shape = embeddings_shape(self._model, tokens)
        return torch.empty(shape, dtype=wide, device=tokens.device)

    def inner(self) -> Batch:  # noqa: D102
        # Wrapped for several workers, a model counts the backward passes after its forward.
        return ModelBatch(self._criterion, unwrapped(self._model), self._sample)

    def teacher(self) -> Batch:  # noqa: D102
        return ModelBatch(self._criterion, moving_average(self._criterion.trainer), self._sample)


def repeated(net_input: dict[str, Any], copies: int) -> dict[str, Any]:
    """Stand copies of a batch below each other.

    Args:
        net_input: A model's arguments; not changed.
        copies: How many.

    Returns:
        New arguments, whose tensors have ``copies`` times as many rows. A tensor without rows,
        and what is no tensor, stays.
    """
    if copies == 1:
        return dict(net_input)
    return {
        name: value.repeat(copies, *[1] * (value.dim() - 1))
        if torch.is_tensor(value) and value.dim()
        else value
        for name, value in net_input.items()
    }


def moving_average(trainer: Any) -> Any:
    """Return fairseq's moving average of the weights, with β as SMART's paper schedules it.

    Args:
        trainer: fairseq's trainer.

    Returns:
        The model, without dropout.

    Raises:
        ValueError: If the run keeps none.
    """
    if trainer is None or not trainer.cfg.ema.store_ema:
        raise ValueError(
            "--smart-bregman compares with the moving average of the weights, which fairseq keeps "
            "with --store-ema; add it, or --smart-bregman 0"
        )
    updates = trainer.get_num_updates()
    scheduled = getattr(trainer.cfg.lr_scheduler, "total_num_update", None)
    end = trainer.cfg.optimization.max_update or scheduled or math.inf
    early = math.isfinite(end) and updates < EARLY_SHARE * float(end)
    trainer.ema.config.ema_decay = EARLY if early else LATE  # its step reads it there
    model = trainer.ema.get_model()
    model.eval()
    return model


def _mean(outputs: list[dict[str, Any]]) -> dict[str, Any]:
    """Average the logging outputs of views, whose counts are the same."""
    first = dict(outputs[0])
    for key in first if len(outputs) > 1 else ():
        values = [output[key] for output in outputs]
        if torch.is_tensor(values[0]):
            first[key] = torch.stack([value.float() for value in values]).mean(0)
    return first
