"""Which parameters the random direction of Eq. 5 covers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.modules import LayerDropModuleList
from torch import Tensor

from deltasam_fairseq.core.graph import reached


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
        return [p for p in self._found[id(model)] if p.requires_grad]


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
