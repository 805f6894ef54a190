"""Per-instance perturbation (Eq. 2) as a step that is made of a step.

Sentence by sentence, as a SAM step of each, or all sentences of a micro-batch at once, which
groups of them can be as well. The passes of the latter are the engine's
(:mod:`~deltasam_fairseq.fairseq_plugin.sharpness.engine_passes`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deltasam_fairseq.fairseq_plugin.criterions.readers import (
    Reader,
    Sample,
    SentenceLosses,
)
from deltasam_fairseq.fairseq_plugin.passes import Result
from deltasam_fairseq.fairseq_plugin.sharpness.engine_passes import (
    own_norms,
    own_projections,
    reader_if_batched,
    within_of,
)
from deltasam_fairseq.fairseq_plugin.sharpness.meters import AscentSums, combined
from deltasam_fairseq.fairseq_plugin.sharpness.model_weights import state_of
from deltasam_fairseq.fairseq_plugin.sharpness.samples import (
    containers_copied,
    split_by_sentence,
)
from deltasam_fairseq.fairseq_plugin.sharpness.step import MicroScope
from deltasam_fairseq.per_instance import AmbiguousBatch, Dealing, Engine, Unsupported

logger = logging.getLogger(__name__)


class SentenceBySentence(MicroScope):
    """One perturbation for each sentence, in passes over batches of one."""

    def pieces(self, sample: Sample, given: Mapping[str, Any]) -> list[Sample]:
        """Divide a micro-batch into its sentences, once they are known to add up to it.

        Args:
            sample: The micro-batch.
            given: What else the step is called with.

        Returns:
            One sample per sentence.
        """
        pieces = split_by_sentence(sample, self.trainer.get_criterion().padding_idx)
        self.check_pieces(sample, pieces, given)
        return pieces


class AllAtOnce(MicroScope):
    """All perturbations of a micro-batch in two passes over it, where that is exact.

    Where it is not for the model or task, ``--sam-per-instance-engine auto`` takes
    the loop over pieces for the rest of the run and says so once, and ``batched`` stops. A
    batch that does not tell whose rows are whose goes by the loop alone.
    """

    def dealing(self, sample: Sample) -> Dealing | None:
        """Say which sentences of a micro-batch share a perturbation; here none.

        Args:
            sample: The micro-batch.

        Returns:
            What the engine asks; ``None`` where every sentence has its own.
        """
        del sample
        return None

    def at_once(self, sample: Sample, given: Mapping[str, Any]) -> Result | None:
        """Run a micro-batch with the batched engine.

        Args:
            sample: The micro-batch.
            given: What else the step is called with.

        Returns:
            As the step; ``None`` if the loop has to run it.

        Raises:
            Unsupported: If the engine is not exact, with ``--sam-per-instance-engine batched``.
        """
        if self.run.needs_loop:
            return None
        try:
            result = self._batched(sample, **given)
        except AmbiguousBatch as reason:
            if not self.run.ambiguous_batches:
                logger.warning(
                    "a batch goes %s, and so will others like it, of which nothing more is said: "
                    "%s",
                    self._one_by_one,
                    reason,
                )
            self.run.ambiguous_batches += 1
            return None
        except Unsupported as reason:
            if self.settings.per_instance_engine == "batched":
                raise
            self.run.needs_loop = True
            logger.warning(
                "the batched engine cannot run this model or task exactly, so %s goes %s: %s",
                self.settings.method,
                self._one_by_one,
                reason,
            )
            return None
        output = combined(result.at_weights, result.moved, self.with_norms(_sums(result)))
        return result.loss, result.sample_size, output

    @property
    def _one_by_one(self) -> str:
        return "group by group" if self.settings.groups > 1 else "sentence by sentence"

    def _batched(
        self, sample: Sample, model: Any, optimizer: Any, update_num: int, **_: Any
    ) -> BatchedResult:
        criterion = self.trainer.get_criterion()
        reader = reader_if_batched(self.step, criterion)
        plain = self.trainer.get_model()
        within = within_of(optimizer, cuda=self.trainer.cuda)
        groups = self.dealing(sample)
        given = {"optimizer": optimizer, "update_num": update_num}
        model.train()
        model.set_num_updates(update_num)
        result = batched_per_instance(
            self.run.engine_of(plain),
            model,
            criterion,
            reader,
            sample,
            rho=self.settings.rho,
            plain_model=plain,
            loss_scale=self.run.weights.loss_scale,
            backward=optimizer.backward,
            within=within,
            groups=groups,
            watching=partial(
                self.run.norms.measuring, self.step, {} if groups is None else sample, given
            ),
        )
        if groups is None:
            self.run.norms.note(result.norms)
        with within():
            self.run.adding_up.check_reader(reader, criterion, plain, sample)
        return result


class BatchedInstances(AllAtOnce, SentenceBySentence):
    """Every sentence's own perturbation in two passes over the batch, where that is exact."""


class BatchedResult(NamedTuple):
    """What one micro-batch saw. With groups, they take the sentences' place below.

    Attributes:
        loss: ``sum_i l_i(w + eps_i)``, detached.
        sample_size: The criterion's own.
        at_weights: The criterion's logging output at ``w``.
        moved: The same at ``w + eps_i``.
        norms: ``|grad l_i(w)|``, shape ``(N,)``, float64, without the loss scale; of a group
            that of the mean.
        sentences: N.
        fallbacks: How many sentences were not perturbed: those whose gradient is
            zero or not finite, or whose perturbed loss is not finite.
        overflow: Whether the loss scale was too large; the gradient is then not
            finite, for fairseq to skip the update.
    """

    loss: Tensor
    sample_size: Any
    at_weights: dict[str, Any]
    moved: dict[str, Any]
    norms: Tensor
    sentences: int
    fallbacks: int
    overflow: bool


def batched_per_instance(
    engine: Engine,
    model: Any,
    criterion: Any,
    reader: Reader,
    sample: Sample,
    *,
    rho: float,
    plain_model: nn.Module | None = None,
    loss_scale: float = 1.0,
    backward: Callable[[Tensor], Any] = torch.autograd.backward,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
    groups: Dealing | None = None,
    watching: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> BatchedResult:
    """Add ``sum_i grad l_i(w + eps_i)`` of a micro-batch to ``.grad``.

    Args:
        engine: The run's engine, made once of the unwrapped model and the run's
            :class:`~deltasam_fairseq.core.weight_space.WeightSpace`.
        model: The model as the task calls it, perhaps wrapped for several workers.
        criterion: The criterion, unwrapped.
        reader: Its reader of per-sentence losses.
        sample: The micro-batch; it is not changed.
        rho: L2 norm of each sentence's perturbation, at least 0.
        plain_model: The unwrapped model, for the pass that gives no gradients to
            parameters; ``model`` when left out.
        loss_scale: What ``backward`` multiplies the loss with.
        backward: fairseq's ``optimizer.backward``, or autograd's.
        within: Makes the context of a forward pass, such as autocast.
        groups: Which sentences share a perturbation; every one has its own when left out.
        watching: Makes the context of the first pass, forward and backward.

    Returns:
        Losses, logging outputs and norms.

    Refusals:
        ``Unsupported`` if the model uses a parameter in a way that no layer rule
        covers. Nothing has changed then: the caller can run the loop.

    State:
        Adds to ``.grad``; random generators and buffers end where one pass at w
        would leave them, and both passes see the same dropout and LayerDrop.

    Cost:
        2 forward and 2 backward passes, the first of these without weight
        gradients.

    Collectives:
        None but those of the second backward pass of a wrapped model.
    """
    root = model if plain_model is None else plain_model
    start = state_of(engine.space, root, criterion)
    seen: list[SentenceLosses] = []

    def losses_of(used: Any) -> Tensor:
        start.replay()
        with within():
            seen.append(reader(criterion, used, containers_copied(sample)))
        return seen[-1].losses

    try:
        with own_projections(root), own_norms(root):
            with watching():
                ascent = engine.ascend(
                    lambda: losses_of(root), rho=rho, loss_scale=loss_scale, groups=groups
                )
            overflow = loss_scale != 1 and bool(ascent.overflows)
            at_weights = seen[-1].logging_output
            left = start.buffers.now()
            seen.clear()
            with ascent.perturbed():
                perturbed_losses = losses_of(model)
            lost = ~torch.isfinite(perturbed_losses.detach()) & torch.isfinite(ascent.losses)
            if lost.any() and not overflow:
                ascent.exclude(lost)
                del perturbed_losses
                seen.clear()
                with ascent.perturbed():
                    perturbed_losses = losses_of(model)
    except BaseException:
        start.replay()
        raise
    loss = perturbed_losses.sum()
    backward(loss * math.inf if overflow else loss)
    left.replay()
    return BatchedResult(
        loss=loss.detach(),
        sample_size=seen[-1].sample_size,
        at_weights=at_weights,
        moved=seen[-1].logging_output,
        norms=ascent.mean_norms,
        sentences=len(ascent.losses),
        fallbacks=int((~ascent.usable).sum()),
        overflow=overflow,
    )


def _sums(result: BatchedResult) -> AscentSums:
    """Turn a micro-batch's result into what is logged."""
    count = float(result.norms.numel())
    total = float(result.norms.nan_to_num(0.0, 0.0, 0.0).sum())
    size = float(result.sample_size) / result.sentences
    return AscentSums(
        perturbations=count,
        sam_gnorm=total / size if size else 0.0,
        sam_ess=count,
        sam_fallback=float(result.fallbacks),
    )
