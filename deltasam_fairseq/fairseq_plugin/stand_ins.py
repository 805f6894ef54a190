"""Criterions that stand in for the task's own while its ``train_step`` runs a pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.core.estimators import ESTIMATORS, Weights, uniform
from deltasam_fairseq.core.pass_state import PassState
from deltasam_fairseq.fairseq_plugin.adding_up import AddingUp
from deltasam_fairseq.fairseq_plugin.config import Sharpness
from deltasam_fairseq.fairseq_plugin.covered import RunCovered
from deltasam_fairseq.fairseq_plugin.model_weights import ModelWeights, in_float
from deltasam_fairseq.fairseq_plugin.sentence_losses import Sample, reader_for
from deltasam_fairseq.fairseq_plugin.tally import Seen, Tally, sums_of


class OverflowingCriterion:
    """Stands in for the criterion after an overflow in the ascent.

    The loss becomes infinite, so the gradient overflows on every worker that it
    is reduced over, and fairseq does what it does then: it lowers the loss scale
    and skips the update, everywhere alike.

    Args:
        criterion: The task's criterion.
    """

    def __init__(self, criterion: Any) -> None:
        self._criterion = criterion

    def __call__(self, model: Any, sample: Sample) -> tuple[Tensor, Any, dict[str, Any]]:
        """Run the pass with an infinite loss.

        Args:
            model: As for the criterion.
            sample: As for the criterion.

        Returns:
            As the criterion.
        """
        loss, sample_size, logging_output = self._criterion(model, sample)
        return loss * math.inf, sample_size, logging_output

    def __getattr__(self, name: str) -> Any:
        """Ask the criterion itself."""
        return getattr(self._criterion, name)


class WeighingCriterion:
    """Stands in for the criterion: its loss is the weighted one of Eq. 6.

    Anything else it is asked for is the criterion's own.

    Args:
        criterion: The task's criterion, unwrapped.
        settings: The run's settings.
        weights: The run's weights.
        covered: The parameters that the random direction covers.
        seed: Seed of this perturbation's random direction.
        sole: Whether this call's sentences are all that share the
            perturbation. Then unusable weights become uniform at once; otherwise
            that would depend on how the update was split, and is settled when
            all gradients are added up.
        in_full: Whether the weights come from passes of their own in float32.
        tally: Where to count.
        adding_up: The run's check of the sentence losses.
    """

    def __init__(
        self,
        criterion: Any,
        settings: Sharpness,
        weights: ModelWeights,
        covered: RunCovered,
        *,
        seed: int,
        sole: bool,
        in_full: bool,
        tally: Tally,
        adding_up: AddingUp,
    ) -> None:
        self._criterion = criterion
        self._read = reader_for(criterion)
        self._estimator = ESTIMATORS.get(settings.estimator)
        self._settings = settings
        self._weights = weights
        self._covered = covered
        self._seed = seed
        self._sole = sole
        self._in_full = in_full
        self._tally = tally
        self._adding_up = adding_up

    def __call__(self, model: Any, sample: Sample) -> tuple[Tensor, Any, dict[str, Any]]:
        """Run the pass at w, after whatever the estimator needs.

        Args:
            model: As for the criterion.
            sample: As for the criterion.

        Returns:
            The weighted loss, the sample size and the logging output at w.
        """
        start = self._weights.state()
        weigh = self._prepare(model, sample, start)
        start.replay()
        read = self._read(self._criterion, model, sample)
        self._adding_up.check_reader(self._read, self._criterion, model, sample)
        weights, floored = weigh(read.losses.detach())
        if self._sole:
            # Nobody waits for the weights: they are read with the norm of their gradient.
            self._tally.unread = (len(weights), sums_of(weights, floored))
            usable = torch.isfinite(weights).all() & (weights > 0).any()
            weights = torch.where(usable, weights, 1.0)
            relative = weights / weights.mean()
        else:
            seen = Seen.of(weights, floored)
            self._tally.add(seen)
            self._tally.raise_to(seen.mean, self._weights.space)
            relative = weights / self._tally.scale
        relative = relative.to(read.losses.dtype)
        return (read.losses * relative).sum(), read.sample_size, read.logging_output

    def _prepare(self, model: Any, sample: Sample, start: PassState) -> Callable[[Tensor], Weights]:
        """Run the estimator's passes, in float32 where asked for and possible."""

        def losses() -> Tensor:
            state.replay()
            return self._read(self._criterion, model, sample).losses

        space, state = self._weights.space, start
        moving = self._covered.of(model, self._criterion, losses)
        estimator = partial(
            self._estimator,
            losses,
            rho=self._settings.rho,
            eta=self._settings.eta,
            seed=self._seed,
        )
        if not self._in_full or self._weights.computes_in_full() or self._estimator is uniform:
            return estimator(space.only(moving))
        sample = in_float(sample)
        # The ascent's own losses are of another precision: a difference between
        # the two would be rounding, not bend.
        start.replay()
        with self._weights.in_full():
            state = self._weights.state()  # whose buffers are the float32 ones
            weigh = estimator(space.only(moving, masters=True))
            with torch.no_grad():
                weights = weigh(losses())
        return lambda _: weights

    def __getattr__(self, name: str) -> Any:
        """Ask the criterion itself."""
        return getattr(self._criterion, name)
