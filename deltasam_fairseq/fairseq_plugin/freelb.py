"""FreeLB (Zhu et al. 2020): a step made of K passes with adversarial noise on the embeddings.

For a micro-batch with embeddings x and losses l_i, K passes with the same dropout give the
gradient of

    (1/K) sum_{k<K} sum_i l_i(w; x_i + delta_{i,k}),
    delta_{i,k+1} = P(delta_{i,k} + alpha g_{i,k} / |g_{i,k}|),    g_{i,k} = grad_delta l_i,

where P projects onto the ball of radius ``--freelb-max-norm``, and the norms are those of one
sentence's whole noise. One graph is alive at a time.

Inside a sharpness-aware step, ``sharpness(freelb(task.train_step))``, each pass at w or w + eps
is these K passes, from the same first noise. delta-SAM weighs a sentence once, by Eq. 5 at its
first noise, and the weight multiplies all its K losses.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from fairseq.logging import metrics
from torch import Tensor

from deltasam_fairseq.fairseq_plugin.config import FreeLBSettings
from deltasam_fairseq.fairseq_plugin.embedding_noise import (
    embedding_noise,
    embeddings_shape,
    encoder_of,
)
from deltasam_fairseq.fairseq_plugin.passes import Result, Step, standing_in
from deltasam_fairseq.fairseq_plugin.sharpness.adding_up import EvaluatedCriterion
from deltasam_fairseq.fairseq_plugin.sharpness.model_weights import state_of
from deltasam_fairseq.fairseq_plugin.sharpness.parallel import without_sync
from deltasam_fairseq.fairseq_plugin.sharpness.samples import Sample, containers_copied
from deltasam_fairseq.fairseq_plugin.sharpness.weighing import WeighingCriterion

# What a micro-batch's logging output carries to the meter, through fairseq's reduction.
_NORMS = "freelb_sum:norms"
_SENTENCES = "freelb_sum:sentences"


class FreeLB:
    """A step that runs another one K times, with the noise moved uphill in between.

    With the trainer and the settings bound it is a
    :data:`~deltasam_fairseq.fairseq_plugin.passes.StepMaker`.

    Args:
        step: Calls the criterion once, as fairseq's own step does.
        trainer: fairseq's trainer.
        settings: What the flags say.
    """

    def __init__(self, step: Step, trainer: Any, settings: FreeLBSettings) -> None:
        self.step = step
        self.trainer = trainer
        self.settings = settings
        self._task_reduce = trainer.task.reduce_metrics

    def __repr__(self) -> str:
        """Name the step in messages about steps that are not fairseq's own."""
        return f"FreeLB with {self.settings.steps} passes"

    def __call__(  # noqa: PLR0917  (as the trainer calls it)
        self,
        sample: Sample,
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        **extra: Any,
    ) -> Result:
        """Add the gradient of the mean over K noises to ``.grad``.

        Args:
            sample: The micro-batch.
            model: The model, perhaps wrapped for several workers.
            criterion: The criterion, or a stand-in that is called like it.
            optimizer: fairseq's outermost optimizer.
            update_num: Number of updates before this one.
            ignore_grad: Whether the micro-batch only keeps this worker in step with others.
            **extra: What else the trainer gives.

        Returns:
            The mean loss of the K passes; the sample size; the logging output of the first
            pass, whose noise is the smallest, with the norms of the last noise.

        State:
            Random generators and buffers end where the first noise and one pass leave them.
        """
        given = {"model": model, "optimizer": optimizer, "update_num": update_num, **extra}
        if isinstance(criterion, EvaluatedCriterion):  # compares losses, and trains nothing
            return self.step(sample=sample, criterion=criterion, ignore_grad=ignore_grad, **given)
        steps = self.settings.steps
        scored = criterion

        def share(model: Any, sample: Sample) -> Result:
            loss, sample_size, logging_output = scored(model, sample)
            return loss / steps, sample_size, logging_output

        noise = self._first_noise(sample, model)
        modules = self.trainer.get_model(), self.trainer.get_criterion()
        start = state_of(model.parameters(), *modules)
        mean: Any = 0.0
        size, logged = None, {}
        for number in range(steps):
            last = number == steps - 1
            noise = noise.detach().requires_grad_()
            with ExitStack() as stack:
                stack.enter_context(embedding_noise(model, noise, every_view=True))
                if not last:
                    # The last pass reduces what all of them left in ``.grad``.
                    stack.enter_context(without_sync(model, criterion))
                loss, *rest = self.step(
                    sample=containers_copied(sample),
                    criterion=share,
                    ignore_grad=ignore_grad,
                    **given,
                )
            mean += loss.detach()
            if number == 0:
                size, logged = rest
            if not last:
                noise = moved(noise.detach(), _gradient(noise), self.settings)
                if isinstance(criterion, WeighingCriterion):
                    scored = criterion.as_before
                start.replay()
        norms = norms_of(noise.detach(), self.settings.norm)
        return mean, size, {**logged, _NORMS: norms.sum(), _SENTENCES: float(len(norms))}

    @contextmanager
    def in_place(self) -> Generator[None, None, None]:
        """Stand in for the task's methods during a block."""
        task = self.trainer.task
        with standing_in(task, train_step=self, reduce_metrics=self.reduce_metrics):
            yield

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Log what the task logs, and the mean norm of a sentence's last noise beside it.

        Args:
            logging_outputs: Of this update's micro-batches, on all workers.
            criterion: The criterion.
        """
        own = [
            {key: value for key, value in log.items() if key not in {_NORMS, _SENTENCES}}
            for log in logging_outputs
        ]
        self._task_reduce(own, criterion)
        sentences = sum(float(log.get(_SENTENCES, 0)) for log in logging_outputs)
        if sentences:
            norm = sum(log.get(_NORMS, 0) for log in logging_outputs) / sentences
            metrics.log_scalar("freelb_delta_norm", norm, sentences, priority=420, round=4)

    def _first_noise(self, sample: Sample, model: Any) -> Tensor:
        tokens = sample.get("net_input", {}).get("src_tokens")
        if tokens is None:
            raise ValueError(
                "FreeLB shifts the embeddings of net_input's src_tokens, and this batch has only "
                f"{', '.join(map(str, sample))}; use a task whose batches have them, or pass "
                "--freelb-steps 0"
            )
        encoder = encoder_of(model)
        words = tokens.ne(encoder.padding_idx).unsqueeze(-1)
        like = encoder.embed_tokens.weight
        zeros = torch.zeros(
            embeddings_shape(model, tokens),
            dtype=torch.promote_types(like.dtype, torch.float32),
            device=like.device,
        )
        return first_noise(zeros, words, self.settings)


def _gradient(noise: Tensor) -> Tensor:
    if noise.grad is None:
        raise ValueError(
            "FreeLB's noise does not reach the loss: the model's encoder did not look its "
            "embeddings up in this pass; pass --freelb-steps 0"
        )
    return noise.grad


def first_noise(zeros: Tensor, words: Tensor, settings: FreeLBSettings) -> Tensor:
    """Draw delta_0 from the default generator.

    Args:
        zeros: Of the embeddings' shape, ``(N, T, D)``.
        words: False at padding, shape ``(N, T, 1)``.
        settings: What the flags say.

    Returns:
        Uniform in +-init, with ``l2`` divided by the root of the number of the sentence's
        entries, so that its norm is about init / sqrt(3); inside the ball; zero at padding.
    """
    if not settings.init:
        return zeros
    noise = zeros.uniform_(-settings.init, settings.init) * words
    if settings.norm == "l2":
        entries = words.sum(dim=(1, 2), keepdim=True) * zeros.size(-1)
        noise /= entries.clamp(min=1).to(noise).sqrt()
    return projected(noise, settings)


def moved(noise: Tensor, gradient: Tensor, settings: FreeLBSettings) -> Tensor:
    """Move each sentence's noise along its normalised gradient, and project it.

    Args:
        noise: Shape ``(N, T, D)``.
        gradient: Of the loss with respect to it, in any unit: fp16's loss scale and the weight
            of a sentence cancel.
        settings: What the flags say.

    Returns:
        The next noise. A sentence whose gradient is zero or not finite keeps the noise that it
        has: batches without a weight, and a loss scale that is too large.
    """
    # First by the largest entry, so that no square is too large or too small.
    largest = gradient.abs().amax(dim=(1, 2), keepdim=True)
    direction = gradient / largest
    if settings.norm == "l2":
        direction = direction / norms_of(direction, "l2").view_as(largest)
    usable = torch.isfinite(largest) & (largest > 0)
    uphill = torch.where(usable, direction, torch.zeros_like(direction))
    return projected(noise + settings.lr * uphill, settings)


def projected(noise: Tensor, settings: FreeLBSettings) -> Tensor:
    """Project each sentence's noise onto the ball; ``--freelb-max-norm 0`` sets no bound."""
    bound = settings.max_norm
    if not bound:
        return noise
    if settings.norm == "linf":
        return noise.clamp(-bound, bound)
    return noise * (bound / norms_of(noise, "l2")).clamp(max=1.0).view(-1, 1, 1)


def norms_of(noise: Tensor, norm: str) -> Tensor:
    """Measure the noise of each sentence.

    Args:
        noise: Shape ``(N, T, D)``.
        norm: ``l2`` or ``linf``.

    Returns:
        Shape ``(N,)``.
    """
    order = 2 if norm == "l2" else torch.inf
    found: Tensor = torch.linalg.vector_norm(noise, ord=order, dim=(1, 2))
    return found
