"""Per-instance perturbation with the batched engine, one micro-batch at a time."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from fairseq.optim.amp_optimizer import AMPOptimizer

from deltasam_fairseq.core.per_instance import AmbiguousBatch, Engine, Unsupported
from deltasam_fairseq.fairseq_plugin.batched import BatchedResult, batched_per_instance
from deltasam_fairseq.fairseq_plugin.compat import is_fairseqs_step
from deltasam_fairseq.fairseq_plugin.meters import AscentSums, combined
from deltasam_fairseq.fairseq_plugin.samples import Sample
from deltasam_fairseq.fairseq_plugin.sentence_losses import Reader, reader_for
from deltasam_fairseq.fairseq_plugin.step import MicroScope, Result
from deltasam_fairseq.registry import UnknownName

logger = logging.getLogger(__name__)


class BatchedInstances(MicroScope):
    """Every sentence's own perturbation in two passes over the batch, where that is exact.

    Where it is not for the model or task, ``--sam-per-instance-engine auto`` takes
    the loop for the rest of the run and says so once, and ``batched`` stops. A
    batch that does not tell whose rows are whose goes by the loop alone.
    """

    def train_step(self, sample: Sample, model: Any, ignore_grad: bool, **kwargs: Any) -> Result:  # noqa: D102
        if ignore_grad or self.run.needs_loop:
            return super().train_step(sample, model, ignore_grad, **kwargs)
        try:
            result = self._batched(sample, model, **kwargs)
        except AmbiguousBatch as reason:
            if not self.run.ambiguous_batches:
                logger.warning(
                    "a batch goes sentence by sentence, and so will others like it, of which "
                    "nothing more is said: %s",
                    reason,
                )
            self.run.ambiguous_batches += 1
            return super().train_step(sample, model, ignore_grad, **kwargs)
        except Unsupported as reason:
            if self.settings.per_instance_engine == "batched":
                raise
            self.run.needs_loop = True
            logger.warning(
                "the batched engine cannot run this model or task exactly, so per_instance goes "
                "sentence by sentence: %s",
                reason,
            )
            return super().train_step(sample, model, ignore_grad, **kwargs)
        output = combined(result.at_weights, result.moved, _sums(result))
        return result.loss, result.sample_size, output

    def _batched(self, sample: Sample, model: Any, **kwargs: Any) -> BatchedResult:
        criterion = self.trainer.get_criterion()
        reader = reader_if_batched(self._task_step, criterion)
        plain = self.trainer.get_model()
        if self.run.engine is None:
            self.run.engine = Engine(plain, self.space)
        optimizer = kwargs["optimizer"]
        # What FairseqTask.train_step does around a forward pass; on a CPU its autocast,
        # which is CUDA's, is nothing.
        autocasts = isinstance(optimizer, AMPOptimizer) and self.trainer.cuda
        within = partial(torch.autocast, "cuda") if autocasts else nullcontext
        model.train()
        model.set_num_updates(kwargs["update_num"])
        result = batched_per_instance(
            self.run.engine,
            model,
            criterion,
            reader,
            sample,
            rho=self.settings.rho,
            plain_model=plain,
            loss_scale=self.run.weights.loss_scale,
            backward=optimizer.backward,
            within=within,
        )
        with within():
            self.run.adding_up.check_reader(reader, criterion, plain, sample)
        return result


def reader_if_batched(step: Any, criterion: Any) -> Reader:
    """Check what can be told of the batched engine before there is a batch.

    Args:
        step: The task's own ``train_step``, as the object has it.
        criterion: The criterion, unwrapped.

    Returns:
        The criterion's reader of per-sentence losses.

    Raises:
        Unsupported: If the task's step is not fairseq's own, or the criterion's
            sentences have no losses that are known.
    """
    if not is_fairseqs_step(step):
        name = getattr(step, "__qualname__", repr(step))
        raise Unsupported(f"the task's train_step is not fairseq's own, but {name}")
    try:
        return reader_for(criterion)
    except UnknownName as error:
        raise Unsupported(str(error)) from error


def _sums(result: BatchedResult) -> AscentSums:
    """Turn a micro-batch's result into what is logged."""
    norms = result.norms.nan_to_num(0.0, 0.0, 0.0)
    count = float(norms.numel())
    total, largest = torch.stack([norms.sum(), norms.max()]).tolist()
    size = float(result.sample_size) / count
    return AscentSums(
        perturbations=count,
        sam_gnorm=total / size if size else 0.0,
        sam_ess=count,
        sam_fallback=float(result.fallbacks),
        sentences=count,
        sam_inorm=total,
        batches=1.0,
        sam_inorm_max=largest,
    )
