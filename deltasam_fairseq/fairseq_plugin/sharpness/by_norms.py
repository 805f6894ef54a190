"""The ascent of weights that come from the norms of the sentences' gradients alone.

The batched engine's first pass leaves these norms and each layer's factors, of which the
weighted sum of the gradients is one product per layer. So an update costs what SAM's costs, where
Eq. 5 takes two more forward passes.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from deltasam_fairseq.core.estimators import from_norms
from deltasam_fairseq.fairseq_plugin.criterions.readers import reader_for
from deltasam_fairseq.fairseq_plugin.passes import Result, Step
from deltasam_fairseq.fairseq_plugin.sharpness.engine_passes import first_pass, within_of
from deltasam_fairseq.fairseq_plugin.sharpness.run import Run
from deltasam_fairseq.fairseq_plugin.sharpness.samples import Sample
from deltasam_fairseq.fairseq_plugin.sharpness.weighing import Seen, Tally
from deltasam_fairseq.per_instance import AmbiguousBatch, Ascent, Unsupported

logger = logging.getLogger(__name__)


class WeighedByNorms:
    """A step whose gradient is that of the weighted losses, from the engine's first pass.

    Where the engine is not exact, the step runs with a criterion that weighs, whose norms
    take a backward pass of each sentence.

    Args:
        step: The step that the perturbation is made for.
        trainer: fairseq's trainer.
        run: The run's settings, weights and engine.
        tally: Where to count.
    """

    def __init__(self, step: Step, trainer: Any, run: Run, tally: Tally) -> None:
        self._step, self._trainer, self._run, self._tally = step, trainer, run, tally

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
        """Add the weighted gradient to ``.grad``, in the tally's unit and with the loss scale.

        Args:
            sample: The micro-batch.
            model: The model, perhaps wrapped; asked where the engine is not exact.
            criterion: The criterion that weighs, for the same case.
            optimizer: fairseq's outermost optimizer.
            update_num: Number of updates before this one.
            ignore_grad: As for the step.
            **extra: What else the trainer gives.

        Returns:
            The weighted loss, the sample size and the logging output at w.
        """
        if not self._run.needs_loop:
            start = self._run.weights.state()
            try:
                return self._by_engine(sample, optimizer, update_num)
            except Unsupported as reason:
                start.replay()
                if not isinstance(reason, AmbiguousBatch):
                    self._run.needs_loop = True
                    logger.warning(
                        "--sam-estimator %s takes a backward pass of each sentence, because the "
                        "batched engine cannot run this model or task exactly: %s",
                        self._run.settings.estimator,
                        reason,
                    )
        return self._step(
            sample=sample,
            model=model,
            criterion=criterion,
            optimizer=optimizer,
            update_num=update_num,
            ignore_grad=ignore_grad,
            **extra,
        )

    def _by_engine(self, sample: Sample, optimizer: Any, update_num: int) -> Result:
        criterion, model = self._trainer.get_criterion(), self._trainer.get_model()
        weights, settings = self._run.weights, self._run.settings
        ascent, read = first_pass(
            self._run.engine_of(model),
            self._step,
            model,
            criterion,
            sample,
            optimizer=optimizer,
            update_num=update_num,
            cuda=self._trainer.cuda,
            loss_scale=weights.loss_scale,
        )
        values = from_norms(
            settings.estimator, ascent.norms, temperature=settings.gibbs_temperature
        )
        counted = Seen.of(values, torch.zeros((), device=values.device))
        self._tally.add(counted)
        self._tally.raise_to(counted.mean, weights.space)
        shares = values / self._tally.scale
        self._add(ascent, shares)
        with within_of(optimizer, cuda=self._trainer.cuda)():
            self._run.adding_up.check_reader(reader_for(criterion), criterion, model, sample)
        loss = (shares.to(ascent.losses) * ascent.losses).sum()
        return loss, read.sample_size, read.logging_output

    def _add(self, ascent: Ascent, shares: torch.Tensor) -> None:
        weights = self._run.weights
        for param, gradient in zip(weights.space, ascent.weighted_gradient(shares), strict=True):
            if gradient is not None:
                scaled = (gradient * weights.loss_scale).to(param.dtype)
                param.grad = scaled if param.grad is None else param.grad.add_(scaled)
