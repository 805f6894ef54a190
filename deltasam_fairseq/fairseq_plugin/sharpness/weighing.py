"""The weights of Eq. 5 inside fairseq: who weighs the sentences, and what is counted.

While the task's step runs, a stand-in for the criterion weighs the sentences of each call
(:class:`WeighingCriterion`) and counts them (:class:`Tally`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from deltasam_fairseq.core.estimators import ESTIMATORS, uniform
from deltasam_fairseq.core.workers import largest
from deltasam_fairseq.fairseq_plugin.criterions.readers import (
    Sample,
    SentenceLosses,
    reader_for,
)
from deltasam_fairseq.fairseq_plugin.sharpness.meters import AscentSums
from deltasam_fairseq.fairseq_plugin.sharpness.model_weights import in_float

if TYPE_CHECKING:
    from deltasam_fairseq.fairseq_plugin.sharpness.run import Run


class WeighingCriterion:
    """Stands in for the criterion: its loss is the weighted one of Eq. 6.

    Anything else it is asked for is the criterion's own.

    Args:
        criterion: The task's criterion, unwrapped.
        run: The run's settings and weights.
        tally: Where to count.
        seed: Seed of this perturbation's random direction.
        sole: Whether this call's sentences are all that share the
            perturbation. Then unusable weights become uniform at once; otherwise
            that would depend on how the update was split, and is settled when
            all gradients are added up.
    """

    def __init__(self, criterion: Any, run: Run, tally: Tally, *, seed: int, sole: bool) -> None:
        self._criterion = criterion
        self._read = reader_for(criterion)
        self._estimator = ESTIMATORS.get(run.settings.estimator)
        if run.settings.estimator == "gibbs":
            temperature = run.settings.gibbs_temperature
            self._estimator = partial(self._estimator, temperature=temperature)  # type: ignore[call-arg]
        self._run = run
        self._tally = tally
        self._seed = seed
        self._sole = sole
        self._relative = torch.ones(())

    def __call__(self, model: Any, sample: Sample) -> tuple[Tensor, Any, dict[str, Any]]:
        """Run the pass at w, after whatever the estimator needs.

        Args:
            model: As for the criterion.
            sample: As for the criterion.

        Returns:
            The weighted loss, the sample size and the logging output at w.
        """
        settings, weights = self._run.settings, self._run.weights
        start = state = weights.state()
        batch = sample

        def losses() -> Tensor:
            state.replay()
            return self._read(self._criterion, model, batch).losses

        moving = self._run.covered.of(model, self._criterion, losses)
        # Eq. 5 is a difference of nearly equal losses: where the model computes in half
        # precision, its passes run apart, in float32.
        apart = (
            self._run.probes_in_full
            and not weights.computes_in_full()
            and self._estimator is not uniform
        )
        with ExitStack() as stack:
            if apart:
                batch = in_float(sample)
                start.replay()
                stack.enter_context(weights.in_full())
                state = weights.state()  # whose buffers are the float32 ones
            weigh = self._estimator(
                losses,
                weights.space.only(moving, masters=apart),
                rho=settings.rho,
                eta=settings.eta,
                seed=self._seed,
            )
            if apart:
                # The ascent's own losses are of another precision: a difference between
                # the two would be rounding, not bend.
                with torch.no_grad():
                    values, floored = weigh(losses())
        start.replay()
        read = self._read(self._criterion, model, sample)
        self._run.adding_up.check_reader(self._read, self._criterion, model, sample)
        if not apart:
            values, floored = weigh(read.losses.detach())
        # Eq. 6, with g_i in the tally's unit: sum_i g_i l_i.
        if self._sole:
            # Nobody waits for the weights: they are read with the norm of their gradient.
            self._tally.unread = (len(values), sums_of(values, floored))
            usable = torch.isfinite(values).all() & (values > 0).any()
            values = torch.where(usable, values, 1.0)
            relative = values / values.mean()
        else:
            seen = Seen.of(values, floored)
            self._tally.add(seen)
            mean = seen.mean
            if getattr(self._criterion, "mixes_workers", False):
                # A backward pass adds up losses of several workers: one unit for all of them.
                mean = largest(mean, weights.space[0].device)
            self._tally.raise_to(mean, weights.space)
            relative = values / self._tally.scale
        self._relative = relative.to(read.losses.dtype)
        return _weighted(read, self._relative)

    def as_before(self, model: Any, sample: Sample) -> tuple[Tensor, Any, dict[str, Any]]:
        """Run another pass of the last call's sentences, with the weights of that call.

        Args:
            model: As for the criterion.
            sample: As for the criterion.

        Returns:
            As the call.
        """
        return _weighted(self._read(self._criterion, model, sample), self._relative)

    def __getattr__(self, name: str) -> Any:
        """Ask the criterion itself."""
        return getattr(self._criterion, name)


def _weighted(read: SentenceLosses, relative: Tensor) -> tuple[Tensor, Any, dict[str, Any]]:
    return (read.losses * relative).sum(), read.sample_size, read.logging_output


def sums_of(weights: Tensor, floored: Tensor) -> Tensor:
    """Sum a batch's weights up, without reading the sums.

    Args:
        weights: Shape ``(N,)``.
        floored: Scalar.

    Returns:
        Their sum, that of their squares, and ``floored``, shape ``(3,)``.
    """
    return torch.stack([weights.sum(), weights.square().sum(), floored.to(weights)])


class Seen(NamedTuple):
    """What the program reads of one batch's weights.

    Attributes:
        sentences: How many they are.
        weights: Their sum.
        squares: The sum of their squares.
        floored: How many had their denominator floored.
    """

    sentences: float
    weights: float
    squares: float
    floored: float

    @classmethod
    def of(cls, weights: Tensor, floored: Tensor) -> Seen:
        """Read weights, all at once: each read of a GPU waits for it.

        Args:
            weights: Shape ``(N,)``.
            floored: Scalar.

        Returns:
            The sums.
        """
        return cls(weights.numel(), *sums_of(weights, floored).tolist())

    @classmethod
    def uniform(cls, sentences: float) -> Seen:
        """Return what weights of one are."""
        return cls(sentences, sentences, sentences, 0.0)

    @property
    def mean(self) -> float:
        """The mean weight; not a number if there is none."""
        return self.weights / self.sentences if self.sentences else math.nan

    @property
    def usable(self) -> bool:
        """Whether weights that are not negative are all finite and not all zero."""
        return math.isfinite(self.weights) and self.weights > 0


@dataclass
class Tally:
    """Sums over the micro-batches that share a perturbation, and over workers.

    Args:
        sentences: Number of sentences.
        weights: Sum of their weights.
        squares: Sum of the squares of their weights.
        floored: Number of weights with a floored denominator.
        sample_size: Denominator of fairseq's gradient.
        unit: The weight that counts as one in the gradients of this worker: the
            largest mean weight of a batch so far. Eq. 5's weights may be 1e-6
            or 1e3, and half-precision gradients have no room for either.
        unread: Number and :func:`sums_of` of the one batch whose weights nobody had to
            know before its backward pass; those that are not usable became uniform.
    """

    sentences: float = 0.0
    weights: float = 0.0
    squares: float = 0.0
    floored: float = 0.0
    sample_size: float = 0.0
    unit: float | None = None
    unread: tuple[int, Tensor] | None = field(default=None, init=False)

    def read_with(self, norm: Tensor) -> tuple[float, int]:
        """Read a norm, and in the same go what is unread.

        Args:
            norm: A float64 scalar.

        Returns:
            The norm, and how many batches had no usable weights.
        """
        if self.unread is None:
            return norm.item(), 0
        count, sums = self.unread
        length, *numbers = torch.cat([norm.view(1), sums.to(norm)]).tolist()
        seen = Seen(count, *numbers)
        kept = seen if seen.usable else Seen.uniform(count)
        self.add(kept)
        self.raise_to(kept.mean, [])
        return length, int(not seen.usable)

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Tally:
        """Make a tally of sums in the order of :meth:`numbers`; more may follow."""
        return cls(*numbers[: len(cls().numbers())])

    def numbers(self) -> list[float]:
        """List the sums in the order of the constructor, without the unit."""
        return [self.sentences, self.weights, self.squares, self.floored, self.sample_size]

    def add(self, seen: Seen) -> None:
        """Count one batch's weights in."""
        self.sentences += seen.sentences
        self.weights += seen.weights
        self.squares += seen.squares
        self.floored += seen.floored

    def count_uniform(self, sentences: float) -> None:
        """Count sentences in whose weights are all one."""
        self.add(Seen.uniform(sentences))

    @property
    def scale(self) -> float:
        """The unit, or 1 as long as there is none."""
        return self.unit or 1.0

    def raise_to(self, mean: float, params: Sequence[Tensor]) -> None:
        """Let the unit be at least the mean of a batch's weights.

        Args:
            mean: Their mean; one that is unusable changes nothing.
            params: The parameters; the gradients that they have so far are
                brought to the new unit.
        """
        if not math.isfinite(mean) or mean <= (self.unit or 0.0):
            return
        gradients = [p.grad for p in params if p.grad is not None]
        if self.unit is not None and gradients:
            torch._foreach_mul_(gradients, self.unit / mean)
        self.unit = mean

    @property
    def mean_weight(self) -> float:
        """Mean of the weights; 1 where that would be no number to divide by."""
        mean = self.weights / self.sentences if self.sentences else 1.0
        return mean if math.isfinite(mean) and mean > 0 else 1.0

    def clear(self) -> None:
        """Forget what was counted."""
        vars(self).update(vars(Tally()))

    def sums(self, norm: float, fallbacks: int) -> AscentSums:
        """Turn the tally into what is logged.

        Args:
            norm: Norm of the ascent gradient, of the sum of losses weighted by
                weights with a mean of one.
            fallbacks: How many fallbacks were taken.

        Returns:
            The record of one perturbation.
        """
        size = self.sample_size
        return AscentSums(
            perturbations=1.0,
            sam_gnorm=norm / size if size and math.isfinite(norm) else 0.0,
            sam_ess=self.weights**2 / self.squares if self.squares else 0.0,
            sam_floored=self.floored / self.sentences if self.sentences else 0.0,
            sam_fallback=float(fallbacks > 0),
        )
