"""The weights of Eq. 5 inside fairseq: what r covers, what is counted, and who weighs.

While the task's step runs, a stand-in for the criterion weighs the sentences of each call
(:class:`WeighingCriterion`), counts them (:class:`Tally`), and draws its random direction
over the parameters that the model has been seen to use (:class:`RunCovered`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from fairseq.modules import LayerDropModuleList
from torch import Tensor, nn

from deltasam_fairseq.core.covered import Covered
from deltasam_fairseq.core.estimators import ESTIMATORS, uniform
from deltasam_fairseq.core.graph import reached
from deltasam_fairseq.core.weights import usable
from deltasam_fairseq.fairseq_plugin.criterions.readers import Sample, reader_for
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

    Attributes:
        fallbacks: How often unusable weights became uniform.
    """

    def __init__(self, criterion: Any, run: Run, tally: Tally, *, seed: int, sole: bool) -> None:
        self._criterion = criterion
        self._read = reader_for(criterion)
        self._estimator = ESTIMATORS.get(run.settings.estimator)
        self._run = run
        self._tally = tally
        self._seed = seed
        self._sole = sole
        self.fallbacks = 0

    def __call__(self, model: Any, sample: Sample) -> tuple[Tensor, Any, dict[str, Any]]:
        """Run the pass at w, after whatever the estimator needs.

        Args:
            model: As for the criterion.
            sample: As for the criterion.

        Returns:
            The weighted loss, the sample size and the logging output at w.
        """
        settings, weights = self._run.settings, self._run.weights
        self._run.adding_up.check_reader(self._read, self._criterion, model, sample)
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
        if not apart:
            values, floored = weigh(read.losses.detach())
        if self._sole and not usable(values):
            values, floored = torch.ones_like(values), torch.zeros_like(floored)
            self.fallbacks += 1
        self._tally.count(values, floored)
        self._tally.raise_unit(values, weights.space)
        # Eq. 6, with g_i in the tally's unit: sum_i g_i l_i.
        relative = (values / self._tally.scale).to(read.losses.dtype)
        return (read.losses * relative).sum(), read.sample_size, read.logging_output

    def __getattr__(self, name: str) -> Any:
        """Ask the criterion itself."""
        return getattr(self._criterion, name)


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

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Tally:
        """Make a tally of sums in the order of :meth:`numbers`; more may follow."""
        return cls(*numbers[: len(cls().numbers())])

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


class RunCovered(Covered):
    """What the random directions of a run cover: the same in all its models, on all workers.

    A worker marks each parameter, 1 if it is covered, 1/2 if its ascent was the
    first to reach it, 0 otherwise. The sums over workers tell all of them the same:
    what is covered from now on, and whether somebody did not cover it yet. They
    travel with the ascent's gradient in scope ``update``. In scope ``micro`` workers
    learn of each other's at the end of the update.

    Args:
        space: What may be perturbed.
        model: The model, not wrapped.
        criterion: The criterion, not wrapped.
    """

    def __init__(self, space: Sequence[Tensor], model: nn.Module, criterion: nn.Module) -> None:
        super().__init__(space)
        names = {id(p): f"criterion.{name}" for name, p in criterion.named_parameters()}
        names.update({id(p): name for name, p in model.named_parameters()})
        self._names = [names[id(p)] for p in space]
        self._shared: set[int] = set()

    def of(
        self, model: nn.Module, criterion: nn.Module, losses: Callable[[], Tensor]
    ) -> list[Tensor]:
        """List what the random direction covers in one call of the criterion.

        Where that is nothing yet, a forward and backward pass with LayerDrop off
        looks for it. (Not in evaluation mode: fairseq 0.12.2 then takes a path
        without a backward.)

        Args:
            model: The model that the criterion is called with, perhaps one of
                several; the others' own parameters would dilute the direction.
            criterion: The criterion.
            losses: One forward pass of it.

        Returns:
            Some of the parameters, in their order.
        """
        own = {id(p) for module in (model, criterion) for p in module.parameters()}
        candidates = [p for p in self.params if id(p) in own]
        if not self.among(candidates):
            with layer_drop_off(model), torch.enable_grad():
                self.grow(reached(losses().sum(), self.params))
        return self.among(candidates)

    def marks(self, found: Iterable[Tensor] = ()) -> list[float]:
        """Mark each parameter for the sum over workers.

        Args:
            found: Those that received a gradient.

        Returns:
            One number per parameter.
        """
        known = {id(p) for p in found}
        return [
            1.0 if place in self.positions else 0.5 * (id(param) in known)
            for place, param in enumerate(self.params)
        ]

    def settle(self, sums: Sequence[float], workers: int) -> bool:
        """Cover what any worker reached.

        Args:
            sums: The workers' marks, added up.
            workers: How many there are.

        Returns:
            Whether it is more than some worker covered; the same on all of them.
        """
        self.positions.update(place for place, total in enumerate(sums) if total)
        self._shared = set(self.positions)
        return any(0 < total < workers for total in sums)

    @property
    def unshared(self) -> int:
        """How many covered parameters the other workers may not know of."""
        return len(self.positions - self._shared)

    def names(self) -> list[str]:
        """List the covered parameters by name, for a checkpoint."""
        return [self._names[place] for place in sorted(self.positions)]

    def load(self, names: Iterable[str]) -> None:
        """Cover what a checkpoint says.

        Args:
            names: From :meth:`names`; those that this run does not train are skipped.
        """
        known = set(names)
        self.positions = {i for i, name in enumerate(self._names) if name in known}
        self._shared = set(self.positions)


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
