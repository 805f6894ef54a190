"""The ascent: from some micro-batches to one direction in weight space.

fairseq's own ``task.train_step`` runs the passes, so every task works that
calls its criterion as ``criterion(model, sample)``, once or several times;
for delta-SAM a stand-in for the criterion weighs the sentences of each call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from fairseq.modules import LayerDropModuleList
from torch import Tensor

from deltasam_fairseq.core.estimators import ESTIMATORS, Weights
from deltasam_fairseq.core.graph import gradients_aside, reached, take_gradients
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.core.weights import usable
from deltasam_fairseq.fairseq_plugin.config import Sharpness
from deltasam_fairseq.fairseq_plugin.meters import AscentSums
from deltasam_fairseq.fairseq_plugin.model_weights import ModelWeights, in_float
from deltasam_fairseq.fairseq_plugin.sentence_losses import Sample, reader_for


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
    """

    sentences: float = 0.0
    weights: float = 0.0
    squares: float = 0.0
    floored: float = 0.0
    sample_size: float = 0.0
    unit: float | None = None

    def numbers(self) -> list[float]:
        """List the sums in the order of the constructor, without the unit."""
        return [self.sentences, self.weights, self.squares, self.floored, self.sample_size]

    def count(self, weights: Tensor, floored: Tensor) -> None:
        """Count one batch's weights in."""
        found = [weights.sum(), weights.square().sum(), floored.to(weights)]
        total, squares, low = torch.stack(found).tolist()
        self.sentences += weights.numel()
        self.weights += total
        self.squares += squares
        self.floored += low

    def count_uniform(self, sentences: float) -> None:
        """Count sentences in whose weights are all one."""
        self.sentences += sentences
        self.weights += sentences
        self.squares += sentences

    @property
    def scale(self) -> float:
        """The unit, or 1 as long as there is none."""
        return self.unit or 1.0

    def raise_unit(self, weights: Tensor, params: Sequence[Tensor]) -> None:
        """Let the unit be at least the mean of a batch's weights.

        Args:
            weights: Shape ``(N,)``; unusable ones change nothing.
            params: The parameters; the gradients that they have so far are
                brought to the new unit.
        """
        mean = weights.mean().item()
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


class Pass(NamedTuple):
    """One micro-batch's pass at w.

    Args:
        state: Random state that its other passes replay.
        logging_output: The criterion's, or ``None`` if no pass was run.
    """

    state: RandomState
    logging_output: dict[str, Any] | None


class Ascent(NamedTuple):
    """Where to move, and what was seen on the way.

    Args:
        direction: One tensor per parameter, or ``None``.
        scale: Factor that gives the direction the norm rho.
        passes: One per micro-batch.
        sums: What is logged.
        overflow: Whether the loss scale was too large for the gradient, so that
            the update is to be skipped.
    """

    direction: list[Tensor | None]
    scale: float
    passes: list[Pass]
    sums: AscentSums
    overflow: bool = False


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
        covered: Per model, the parameters that the random direction covers;
            filled here on first use.
        seed: Seed of this perturbation's random direction.
        sole: Whether this call's sentences are all that share the
            perturbation. Then unusable weights become uniform at once; otherwise
            that would depend on how the update was split, and is settled when
            all gradients are added up.
        in_full: Whether the weights come from passes of their own in float32.
        tally: Where to count.
    """

    def __init__(
        self,
        criterion: Any,
        settings: Sharpness,
        weights: ModelWeights,
        covered: Covered,
        *,
        seed: int,
        sole: bool,
        in_full: bool,
        tally: Tally,
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
        self.fallbacks = 0

    def __call__(self, model: Any, sample: Sample) -> tuple[Tensor, Any, dict[str, Any]]:
        """Run the pass at w, after whatever the estimator needs.

        Args:
            model: As for the criterion.
            sample: As for the criterion.

        Returns:
            The weighted loss, the sample size and the logging output at w.
        """
        start = RandomState.capture(self._weights.space)
        weigh = self._prepare(model, sample, start)
        start.replay()
        read = self._read(self._criterion, model, sample)
        weights, floored = weigh(read.losses)
        if self._sole and not usable(weights):
            weights, floored = torch.ones_like(weights), torch.zeros_like(floored)
            self.fallbacks += 1
        self._tally.count(weights, floored)
        self._tally.raise_unit(weights, self._weights.space)
        relative = (weights / self._tally.scale).to(read.losses.dtype)
        return (read.losses * relative).sum(), read.sample_size, read.logging_output

    def _prepare(
        self, model: Any, sample: Sample, start: RandomState
    ) -> Callable[[Tensor], Weights]:
        """Run the estimator's passes, in float32 where asked for and possible."""

        def losses() -> Tensor:
            start.replay()
            return self._read(self._criterion, model, sample).losses

        space = self._weights.space
        moving = self._covered.by(model, losses, space)
        estimator = partial(
            self._estimator,
            losses,
            rho=self._settings.rho,
            eta=self._settings.eta,
            seed=self._seed,
        )
        if not self._in_full or self._weights.computes_in_full():
            return estimator(space.only(moving))
        sample = in_float(sample)
        with self._weights.in_full():
            weigh = estimator(space.only(moving, masters=True))
            with torch.no_grad():
                at_weights = losses()
        # The ascent's own losses are of another precision: a difference between
        # the two would be rounding, not bend.
        return lambda _: weigh(at_weights)

    def __getattr__(self, name: str) -> Any:
        """Ask the criterion itself."""
        return getattr(self._criterion, name)


@dataclass
class Covered:
    """Which parameters the random direction covers: those that receive a gradient.

    Found once per model by a forward and backward pass with LayerDrop off, so
    that the answer does not depend on where a run was resumed. (Not in
    evaluation mode: fairseq 0.12.2 then takes a path without a backward.)
    """

    _found: dict[int, list[Tensor]] = field(default_factory=dict)

    def by(
        self, model: Any, losses: Callable[[], Tensor], params: Sequence[Tensor]
    ) -> list[Tensor]:
        """List the parameters that a model's losses depend on.

        Args:
            model: The model that the criterion was called with.
            losses: One forward pass of it.
            params: Candidates.

        Returns:
            Some of ``params``, in their order.
        """
        if id(model) not in self._found:
            with layer_drop_off(model), torch.enable_grad():
                self._found[id(model)] = reached(losses().sum(), params)
        return self._found[id(model)]


@contextmanager
def layer_drop_off(model: Any) -> Generator[None, None, None]:
    """Keep all layers of a model during a block.

    Args:
        model: The model; its modules' probabilities are put back.

    Yields:
        Nothing.
    """
    kept = [
        (module, name, getattr(module, name))
        for module in model.modules()
        for name in ("p" if isinstance(module, LayerDropModuleList) else "layerdrop",)
        if isinstance(getattr(module, name, None), float)
    ]
    for module, name, _ in kept:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, probability in kept:
            setattr(module, name, probability)


def ascend(
    run_passes: Callable[[Any, Tally], list[Pass]],
    weights: ModelWeights,
    weighing: Callable[[Tally], WeighingCriterion] | None,
    criterion: Any,
    *,
    rho: float,
    add_up: Callable[..., list[float]] | None,
    workers: int = 1,
) -> Ascent:
    """Find the direction of one perturbation.

    Weights that leave no usable gradient are replaced by uniform ones (SAM);
    a gradient that is zero or not finite even then moves nothing. Both count
    as a fallback. A gradient that is not finite for finite weights, under a loss
    scale, is an overflow. With several workers all of them decide alike,
    because they see the same added-up gradient.

    Args:
        run_passes: Runs forward and backward passes of the micro-batches with
            the criterion that it is given, and counts into the tally.
        weights: The run's weights; their ``.grad`` is left as it was.
        weighing: Makes the stand-in for the criterion; ``None`` for SAM.
        criterion: The task's own criterion.
        rho: L2 norm of the perturbation.
        add_up: Sums gradients and numbers over workers; ``None`` for one alone.
        workers: How many workers share the perturbation.

    Returns:
        The ascent.
    """
    space = weights.space
    fallbacks = 0
    passes: list[Pass] = []
    attempts = ([weighing] if weighing else []) + [None]
    with gradients_aside(space):
        for attempt in attempts:
            tally = Tally()
            stand_in = attempt(tally) if attempt else None
            seen = run_passes(stand_in or criterion, tally)
            passes = passes or seen
            fallbacks += stand_in.fallbacks if stand_in else 0
            gradients = take_gradients(space)
            unit = tally.scale
            if add_up is not None:
                filled = [
                    torch.zeros_like(p) if g is None else g
                    for p, g in zip(space, gradients, strict=True)
                ]
                # Sums of weights times gradients, brought to a mean weight of one
                # and divided by the number of workers, as DDP does: half
                # precision has room for that if it had for the shares.
                numbers = add_up(
                    filled,
                    tally.numbers(),
                    factor=unit,
                    divisor=lambda numbers: Tally(*numbers).mean_weight * workers,
                )
                tally, gradients = Tally(*numbers), list(filled)
                unit = tally.mean_weight * workers
            direction, norm = space.steepest(gradients)
            if math.isfinite(norm) and norm > 0:
                whole = norm * unit / tally.mean_weight / weights.loss_scale
                return Ascent(direction, rho / norm, passes, tally.sums(whole, fallbacks))
            fallbacks += 1
            if weights.is_scaled and not math.isfinite(norm) and math.isfinite(tally.weights):
                break
    overflow = weights.is_scaled and not math.isfinite(norm)
    nowhere: list[Tensor | None] = [None] * len(space)
    return Ascent(nowhere, 0.0, passes, tally.sums(norm, fallbacks), overflow)
