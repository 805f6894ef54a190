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
from typing import Any, NamedTuple

import torch
from fairseq.modules import LayerDropModuleList
from torch import Tensor

from deltasam_fairseq.core.estimators import ESTIMATORS
from deltasam_fairseq.core.graph import gradients_aside, reached, take_gradients
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.core.vectors import global_norm
from deltasam_fairseq.core.weights import usable
from deltasam_fairseq.fairseq_plugin.config import Sharpness
from deltasam_fairseq.fairseq_plugin.meters import AscentSums
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
    """

    sentences: float = 0.0
    weights: float = 0.0
    squares: float = 0.0
    floored: float = 0.0
    sample_size: float = 0.0

    def numbers(self) -> list[float]:
        """List the sums in the order of the constructor."""
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

    def clear(self) -> None:
        """Forget what was counted."""
        vars(self).update(vars(Tally()))

    def sums(self, norm: float, fallbacks: int) -> AscentSums:
        """Turn the tally into what is logged.

        Args:
            norm: Norm of the ascent gradient, of the weighted sum of losses.
            fallbacks: How many fallbacks were taken.

        Returns:
            The record of one perturbation.
        """
        mean_weight = self.weights / self.sentences if self.sentences else 1.0
        scale = mean_weight * self.sample_size
        return AscentSums(
            perturbations=1.0,
            sam_gnorm=norm / scale if scale and math.isfinite(norm) else 0.0,
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
    """

    direction: list[Tensor | None]
    scale: float
    passes: list[Pass]
    sums: AscentSums


class WeighingCriterion:
    """Stands in for the criterion: its loss is the weighted one of Eq. 6.

    Anything else it is asked for is the criterion's own.

    Args:
        criterion: The task's criterion, unwrapped.
        settings: The run's settings.
        params: The parameters that are perturbed, each once.
        covered: Per model, the parameters that the random direction covers;
            filled here on first use.
        seed: Seed of this perturbation's random direction.
        sole: Whether this call's sentences are all that share the
            perturbation. Then weights are scaled to a mean of 1, and unusable
            ones become uniform at once; otherwise both would depend on how the
            update was split, and are settled when all gradients are added up.
        tally: Where to count.
    """

    def __init__(
        self,
        criterion: Any,
        settings: Sharpness,
        params: Sequence[Tensor],
        covered: Covered,
        *,
        seed: int,
        sole: bool,
        tally: Tally,
    ) -> None:
        self._criterion = criterion
        self._read = reader_for(criterion)
        self._estimator = ESTIMATORS.get(settings.estimator)
        self._settings = settings
        self._params = params
        self._covered = covered
        self._seed = seed
        self._sole = sole
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
        start = RandomState.capture(self._params)

        def losses() -> Tensor:
            start.replay()
            return self._read(self._criterion, model, sample).losses

        weigh = self._estimator(
            losses,
            self._covered.by(model, losses, self._params),
            rho=self._settings.rho,
            eta=self._settings.eta,
            seed=self._seed,
        )
        start.replay()
        read = self._read(self._criterion, model, sample)
        weights, floored = weigh(read.losses)
        if self._sole:
            if not usable(weights):
                weights, floored = torch.ones_like(weights), torch.zeros_like(floored)
                self.fallbacks += 1
            weights = weights / weights.mean()
        self._tally.count(weights, floored)
        loss = (read.losses * weights.to(read.losses.dtype)).sum()
        return loss, read.sample_size, read.logging_output

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
    params: Sequence[Tensor],
    weighing: Callable[[Tally], WeighingCriterion] | None,
    criterion: Any,
    *,
    rho: float,
    add_up: Callable[[list[Tensor], list[float]], list[float]] | None,
) -> Ascent:
    """Find the direction of one perturbation.

    Weights that leave no usable gradient are replaced by uniform ones (SAM);
    a gradient that is zero or not finite even then moves nothing. Both count
    as a fallback. With several workers all of them decide alike, because they
    see the same added-up gradient.

    Args:
        run_passes: Runs forward and backward passes of the micro-batches with
            the criterion that it is given, and counts into the tally.
        params: The parameters, each once; their ``.grad`` is left as it was.
        weighing: Makes the stand-in for the criterion; ``None`` for SAM.
        criterion: The task's own criterion.
        rho: L2 norm of the perturbation.
        add_up: Sums gradients and numbers over workers; ``None`` for one alone.

    Returns:
        The ascent.
    """
    fallbacks = 0
    passes: list[Pass] = []
    attempts = ([weighing] if weighing else []) + [None]
    with gradients_aside(params):
        for attempt in attempts:
            tally = Tally()
            stand_in = attempt(tally) if attempt else None
            seen = run_passes(stand_in or criterion, tally)
            passes = passes or seen
            fallbacks += stand_in.fallbacks if stand_in else 0
            direction = take_gradients(params)
            if add_up is not None:
                filled = [
                    torch.zeros_like(p) if g is None else g
                    for p, g in zip(params, direction, strict=True)
                ]
                tally = Tally(*add_up(filled, tally.numbers()))
                direction = list(filled)
            norm = global_norm([g for g in direction if g is not None]).item()
            if math.isfinite(norm) and norm > 0:
                return Ascent(direction, rho / norm, passes, tally.sums(norm, fallbacks))
            fallbacks += 1
    return Ascent([None] * len(params), 0.0, passes, tally.sums(norm, fallbacks))
