"""Which parameters the random direction of Eq. 5 covers in a run of fairseq's."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from fairseq.modules import LayerDropModuleList
from torch import Tensor, nn

from deltasam_fairseq.core.covered import Covered
from deltasam_fairseq.core.graph import reached


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
