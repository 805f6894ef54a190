"""One perturbation for the micro-batches of an update, whose passes somebody else runs.

A trainer that has its own idea of a step (autocast, its own loss, gradient accumulation)
gives the step as it is: the ascent and the descent are both made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deltasam_fairseq.core.ascent import in_full_precision, is_usable
from deltasam_fairseq.core.covered import Covered
from deltasam_fairseq.core.estimators import Estimator
from deltasam_fairseq.core.graph import gradients_aside, take_gradients
from deltasam_fairseq.core.pass_state import Buffers, PassState
from deltasam_fairseq.core.passes import Passes
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.core.workers import add_up


class Batch(NamedTuple):
    """A micro-batch, or a part of one.

    Args:
        step: Runs a forward and a backward pass, which adds this batch's share of the update's
            gradient to ``.grad``, and returns its share of the loss, a scalar.
        losses: Runs a forward pass and returns one loss per sentence, shape ``(N,)``; only
            weights need it.
        divisor: The share of the loss is the sum of the sentences' losses over this.
    """

    step: Callable[[], Tensor]
    losses: Callable[[], Tensor]
    divisor: Any = 1.0


class SharedReport(NamedTuple):
    """What the passes of one perturbation saw, in the unit of the update's loss.

    Args:
        loss: At w, of this worker.
        perturbed_loss: At w + eps, of this worker.
        gradient_norm: Norm of the ascent's gradient, as if the mean weight were one.
        effective_sentences: How many sentences the weights amount to; 0 without weights.
        floored: Share of the weights with a floored denominator.
        fallback: 1 if equal weights took the place of unusable ones, or nothing was perturbed.
    """

    loss: float
    perturbed_loss: float
    gradient_norm: float
    effective_sentences: float
    floored: float
    fallback: float


@dataclass(frozen=True)
class Weighing:
    """How sentences are weighed.

    Args:
        estimator: The estimator.
        covered: What its random direction covers; grows by what is reached.
        eta: Floor under the slope of Eq. 5, nats.
        seed: Seed of the random direction.
    """

    estimator: Estimator
    covered: Covered
    eta: float
    seed: int


@dataclass(frozen=True)
class Accumulated:
    """What the updates of a run have in common.

    Args:
        model: The model, perhaps wrapped; all its gradients are kept out of an ascent's way.
        space: The parameters that are perturbed.
        rho: L2 norm of the perturbation.
        workers: How many workers share it; their default process group adds gradients up.
        no_sync: Makes a context in which gradients stay on this worker.
    """

    model: nn.Module
    space: WeightSpace
    rho: float
    workers: int = 1
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext

    def step(
        self, batches: Sequence[Batch], weighing: Weighing | None = None, *, last: bool = True
    ) -> SharedReport:
        """Add the gradient at w + eps of some micro-batches to ``.grad``.

        Args:
            batches: The micro-batches that share the perturbation.
            weighing: How their sentences are weighed; equally when left out (SAM).
            last: Whether the last batch's gradients are to reach the other workers.

        Returns:
            The report.

        State:
            The weights are restored bit for bit. Random generators and buffers end where one
            pass of every batch at w leaves them; all passes of a batch see the same dropout.

        Collectives:
            With several workers one sum of the ascent's gradients and counts.

        Cost:
            Of each batch 2 forward and 2 backward passes, and what the weights need.
        """
        direction, norm, states, left, found = self._ascend(batches, weighing)
        usable = is_usable(norm)
        if not usable:
            direction = [None] * len(self.space)
        moved = []
        with self.space.perturbed(direction, self.rho / norm if usable else 0.0):
            for place, (batch, state) in enumerate(zip(batches, states, strict=True), start=1):
                state.replay()
                with nullcontext() if last and place == len(batches) else self.no_sync():
                    moved.append(batch.step().detach().double())
        left.replay()
        return found._replace(perturbed_loss=torch.stack(moved).sum().item())

    def _ascend(
        self, batches: Sequence[Batch], weighing: Weighing | None
    ) -> tuple[list[Tensor | None], float, list[PassState], Buffers, SharedReport]:
        """Find the direction.

        Passes that are the first to reach a parameter are run once more, with a random direction
        that covers it. Weights that leave no usable gradient are replaced by equal ones.

        Returns:
            The direction, its norm, the states that the passes start from, the buffers that they
            leave, and the report without a perturbed loss.
        """
        start, everything = self._state(), list(self.model.parameters())
        weighs, fallback = weighing, 0.0
        while True:
            start.replay()
            states, seen = [], []
            with gradients_aside(everything), self.no_sync():
                for batch in batches:
                    states.append(self._state())
                    # Nothing is covered before the first ascent, which finds out what to cover.
                    if weighs and weighs.covered.positions:
                        seen.append(self._weighted(batch, weighs))
                    else:
                        loss = batch.step().detach().double()
                        seen.append(torch.stack([loss, *loss.new_zeros(4)]))
                gradients = take_gradients(self.space)
            left = start.buffers.now()
            loss, *numbers = torch.stack(seen).sum(0).tolist()
            gradients, numbers, reached = self._over_workers(gradients, numbers)
            if weighs and weighs.covered.grow(reached):
                continue
            direction, norm = self.space.steepest(gradients)
            if is_usable(norm) or not weighs:
                break
            weighs, fallback = None, 1.0
        weights, squares, floored, sentences = numbers if weighs else (1.0, 1.0, 0.0, 1.0)
        report = SharedReport(
            loss,
            loss,
            norm * sentences / weights,
            weights**2 / squares if weighs else 0.0,
            floored / sentences,
            fallback if is_usable(norm) else 1.0,
        )
        return direction, norm, states, left, report

    def _weighted(self, batch: Batch, weighing: Weighing) -> Tensor:
        """Add the gradient of the weighted losses to ``.grad`` (Eq. 6).

        Returns:
            The loss, and the sums of weights, of their squares, of floored ones, of sentences.
        """
        passes = Passes(self.space, batch.losses)
        weigh = in_full_precision(
            weighing.estimator,
            passes,
            self.space.only(weighing.covered.among(self.space)),
            rho=self.rho,
            eta=weighing.eta,
            seed=weighing.seed,
        )
        losses = passes()
        values, floored = weigh(losses.detach())
        torch.autograd.backward((losses * values.to(losses.dtype)).sum() / batch.divisor)
        loss = (losses.detach().sum() / batch.divisor).double()
        count = torch.full_like(loss, len(losses))
        return torch.stack([loss, values.sum(), values.square().sum(), floored.to(loss), count])

    def _over_workers(
        self, gradients: list[Tensor | None], numbers: list[float]
    ) -> tuple[list[Tensor | None], list[float], Iterable[Tensor]]:
        """Take the mean of all workers' gradients and numbers; list what any worker reached."""
        marks = [float(gradient is not None) for gradient in gradients]
        if self.workers > 1:
            filled = [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(self.space, gradients, strict=True)
            ]
            sums = add_up(filled, [*numbers, *marks], None, divisor=lambda _: self.workers)
            gradients, numbers, marks = list(filled), sums[: len(numbers)], sums[len(numbers) :]
        return gradients, numbers, [p for p, mark in zip(self.space, marks, strict=True) if mark]

    def _state(self) -> PassState:
        return PassState.capture(self.space, self.model.modules())
