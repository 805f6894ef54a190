"""Mirror-BERT's contrastive loss (InfoNCE) of two views of each sentence.

The batch is that of ``--task deltasam_mirror``: all first views, then all second ones. The
negatives are those of all workers, with gradients, so that two workers do what one process
does with the batch of both.
"""

# No `from __future__ import annotations`: fairseq reads the types of a configuration.
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from fairseq.criterions import register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor, distributed

from deltasam_fairseq.core.checks import not_negative, positive
from deltasam_fairseq.fairseq_plugin.criterions.base import SentenceCriterion
from deltasam_fairseq.fairseq_plugin.criterions.readers import Sample, SentenceLosses
from deltasam_fairseq.fairseq_plugin.embedding_noise import (
    embedding_noise,
    embeddings_shape,
    encoder_of,
    noise_rows,
)
from deltasam_fairseq.fairseq_plugin.one_side import unperturbed
from deltasam_fairseq.fairseq_plugin.passes import recomputes
from deltasam_fairseq.objectives.contrastive import info_nce

POOLINGS = ("cls", "mean", "mean_with_pads")
SIDES = ("second", "both")


@dataclass
class InfoNCEConfig(FairseqDataclass):
    """Temperature, pooling and what is perturbed."""

    temperature: float = field(
        default=0.04, metadata={"help": "what cosines are divided by; Mirror-BERT's by default"}
    )
    pooling: ChoiceEnum(list(POOLINGS)) = field(  # type: ignore[valid-type]
        default="cls",
        metadata={
            "help": "the embedding of a sentence: its first token, the mean of its tokens, or the "
            "mean of all positions of the batch (Mirror-BERT's for BERT; depends on the padding)"
        },
    )
    perturb_side: ChoiceEnum(list(SIDES)) = field(  # type: ignore[valid-type]
        default="second",
        metadata={
            "help": "which views SAM, delta-SAM, FreeLB and --noise perturb: the second one alone "
            "(the paper's way, section 5.3) or both"
        },
    )
    noise: float = field(
        default=0.0,
        metadata={
            "help": "scale of the uniform noise on the word embeddings of training, of the views "
            "of --perturb-side"
        },
    )
    view_chunks: int = field(
        default=1,
        metadata={
            "help": "encode the views in so many parts, those of like lengths together: less "
            "padding for more passes, which pays on a CPU and with views of very different lengths"
        },
    )


@register_criterion("deltasam_infonce", dataclass=InfoNCEConfig)
class InfoNCECriterion(SentenceCriterion):
    """Each sentence's views have to find each other among all views of the batch."""

    dependence: ClassVar[str] = (
        "the other sentences of the batch are its negatives, and of a sentence by itself the loss "
        "is zero"
    )
    mixes_workers: ClassVar[bool] = True

    def __init__(self, cfg: InfoNCEConfig, task: Any) -> None:
        super().__init__(task)
        self.temperature = positive(cfg.temperature, "--temperature")
        self.noise = not_negative(cfg.noise, "--noise")
        self.pooling = cfg.pooling
        self.second_alone = cfg.perturb_side == "second"
        self.chunks = cfg.view_chunks
        if self.chunks < 1:
            raise ValueError(f"--view-chunks must be at least 1, got {self.chunks}")
        if self.chunks > 1 and self.pooling == "mean_with_pads":
            raise ValueError(
                "--view-chunks pads each part to its own longest view, and the embeddings of "
                "--pooling mean_with_pads depend on the padding; take another pooling, or 1"
            )

    def joins(self, trainer: Any) -> None:
        """Refuse a model whose first views would be recomputed at perturbed weights.

        Args:
            trainer: fairseq's trainer.

        Raises:
            ValueError: If ``--perturb-side second`` meets recomputed activations.
        """
        if self.second_alone and recomputes(trainer.get_model()):
            raise ValueError(
                "--perturb-side second holds the first views' weights for the forward pass, and "
                "--checkpoint-activations computes them again in the backward pass, at the "
                "perturbed weights; train without it, or with --perturb-side both"
            )

    def sentence_losses(self, model: Any, sample: Sample) -> SentenceLosses:
        """Score each sentence; see :func:`~deltasam_fairseq.objectives.contrastive.info_nce`.

        Args:
            model: A model with one of fairseq's transformer encoders.
            sample: The batch; its ``src_tokens`` have the N first views, then the N second ones.

        Returns:
            Losses ``(N,)``, the number of sentences and the logging output.
        """
        tokens = sample["net_input"]["src_tokens"]
        count = len(tokens) // 2
        with ExitStack() as stack:
            if self.training and self.noise:
                stack.enter_context(embedding_noise(model, self._noise(model, tokens)))
            if self.second_alone and self.training:
                with unperturbed(model), noise_rows(slice(0)):
                    first = self._embed(model, tokens[:count])
                with noise_rows(slice(count, None)):
                    second = self._embed(model, tokens[count:])
            else:
                both = self._embed(model, tokens)
                first, second = both[:count], both[count:]
        everyone, start = gathered(torch.stack([first, second]))
        losses = info_nce(
            first,
            second,
            temperature=self.temperature,
            candidates=(everyone[0], everyone[1]),
            start=start,
        )
        return SentenceLosses(
            losses,
            count,
            {
                "loss": losses.detach().sum(),
                "ntokens": sample["ntokens"],
                "nsentences": count,
                "sample_size": count,
            },
        )

    def _embed(self, model: Any, tokens: Tensor) -> Tensor:
        """Return one embedding per row of tokens, shape ``(rows, D)``."""
        words = tokens.ne(encoder_of(model).padding_idx)
        if self.chunks == 1:
            features, _ = model(src_tokens=tokens, features_only=True)
            return pooled(features, words, self.pooling)
        lengths = words.sum(1)
        order = lengths.argsort()
        parts = []
        for rows in order.chunk(self.chunks):
            width = int(lengths[rows[-1]])
            with noise_rows(rows, width):
                features, _ = model(src_tokens=tokens[rows, :width], features_only=True)
            parts.append(pooled(features, words[rows, :width], self.pooling))
        return torch.cat(parts)[order.argsort()]

    def _noise(self, model: Any, tokens: Tensor) -> Tensor:
        """Draw uniform noise for the perturbed views, shape ``(2N, T, D)``."""
        shape = embeddings_shape(model, tokens)
        noise = torch.empty(shape, device=tokens.device).uniform_(-self.noise, self.noise)
        if self.second_alone:
            noise[: len(tokens) // 2] = 0
        return noise

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the mean loss of a sentence, in nats.

        Args:
            logging_outputs: Of all workers.
        """
        total, size = (
            sum(float(log.get(key, 0)) for log in logging_outputs)
            for key in ("loss", "sample_size")
        )
        metrics.log_scalar("loss", total / size if size else 0.0, size, round=4)


def pooled(features: Tensor, words: Tensor, pooling: str) -> Tensor:
    """Make one embedding of a sentence's states.

    Args:
        features: Of the last layer, shape ``(N, T, D)``.
        words: Whether a position is no padding, shape ``(N, T)``.
        pooling: One of ``cls``, ``mean`` (of the positions that are no padding) and
            ``mean_with_pads`` (of all; it depends on the width of the batch).

    Returns:
        Shape ``(N, D)``.
    """
    if pooling == "cls":
        return features[:, 0]
    if pooling == "mean_with_pads":
        return features.mean(1)
    words = words.unsqueeze(-1)
    return torch.where(words, features, 0).sum(1) / words.sum(1)


def gathered(own: Tensor) -> tuple[Tensor, int]:
    """Collect the views of all workers.

    Args:
        own: Of this worker, shape ``(2, N, D)``; N may differ from worker to worker.

    Returns:
        Those of all workers in order of rank, shape ``(2, M, D)``, and where this worker's begin.
        The gradient of all workers' losses reaches the views of each.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return own, 0
    count = torch.tensor(own.shape[1], device=own.device)
    counts = [torch.zeros_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, count)
    sizes = torch.stack(counts).tolist()
    everyone: Tensor = _Gather.apply(own, sizes)  # type: ignore[no-untyped-call]
    return everyone, sum(sizes[: distributed.get_rank()])


class _Gather(torch.autograd.Function):
    """Collects what the workers have; the gradient of each share is summed over workers."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: list[int]) -> Tensor:  # noqa: D102
        ctx.sizes = sizes
        padded = own.new_zeros(own.shape[0], max(sizes), own.shape[2])
        padded[:, : own.shape[1]] = own
        shares = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(shares, padded)
        return torch.cat([share[:, :n] for share, n in zip(shares, sizes, strict=True)], dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: D102
        total = gradient.contiguous()
        distributed.all_reduce(total)
        rank = distributed.get_rank()
        start = sum(ctx.sizes[:rank])
        return total[:, start : start + ctx.sizes[rank]], None
