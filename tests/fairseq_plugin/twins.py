"""What the slow twins need of a fairseq trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fairseq.trainer import Trainer

from deltasam_fairseq.core import reference
from deltasam_fairseq.core.noise import gaussian_direction
from deltasam_fairseq.fairseq_plugin.criterions.readers import token_losses


class Functional:
    """A model evaluated at explicit weights, for the reference twins.

    ``torch.func.functional_call`` does not restore a model whose encoder and
    decoder share a module, as fairseq's shared embeddings do.

    Args:
        model: The model; its own parameters are back after each call.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.weights: dict[int, torch.Tensor] = {}

    def at(self, weights: Sequence[torch.Tensor]) -> None:
        """Set the values of the parameters, in the model's order."""
        own = self.model.parameters()
        self.weights = {id(p): w for p, w in zip(own, weights, strict=True)}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's forward pass at these weights."""
        slots = [
            (module._parameters, name, param)
            for module in self.model.modules()
            for name, param in module._parameters.items()
            if param is not None
        ]
        try:
            for parameters, name, param in slots:
                parameters[name] = self.weights[id(param)]
            return self.model(*args, **kwargs)
        finally:
            for parameters, name, param in slots:
                parameters[name] = param

    def __getattr__(self, name: str) -> Any:
        """Ask the model itself for anything else."""
        return getattr(self.model, name)


def direction(
    at: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], *, radius: float, seed: int
) -> list[torch.Tensor]:
    """Draw r over the parameters that have a gradient; fairseq 0.12.2 has others."""
    used = [p for p, g in zip(at, gradients, strict=True) if g.any()]
    drawn = iter(gaussian_direction(used, radius=radius, seed=seed))
    return [next(drawn) if g.any() else torch.zeros_like(g) for g in gradients]


def losses_at(trainer: Trainer, samples: Sequence[Any]) -> reference.LossesAt:
    """Return the per-sentence losses of some mini-batches as a function of weights."""
    model = Functional(trainer.get_model())

    def losses(weights: Sequence[torch.Tensor]) -> torch.Tensor:
        model.at(weights)
        return torch.cat([token_losses(trainer.get_criterion(), model, s).losses for s in samples])

    return losses
