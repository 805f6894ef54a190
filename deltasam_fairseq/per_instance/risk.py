"""Every sentence's loss at its own perturbed weights, without a gradient there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.per_instance.engine import Engine


class AdversarialLosses(NamedTuple):
    """What a batch's sentences lose at w and at the worst point near it.

    Attributes:
        losses: ``l_i(w)``, shape ``(N,)``, detached.
        moved: ``l_i(w + eps_i)``, shape ``(N,)``, detached; equal to ``losses`` for a
            sentence whose gradient is zero or not finite.
        norms: ``|grad l_i(w)|``, shape ``(N,)``, float64.
    """

    losses: Tensor
    moved: Tensor
    norms: Tensor


def adversarial_losses(
    engine: Engine, losses_function: Callable[[], Tensor], *, rho: float
) -> AdversarialLosses:
    """Score every sentence of a batch at ``w`` and at ``w + rho g_i / |g_i|``.

    Args:
        engine: The engine of the model.
        losses_function: One forward pass of the batch, shape ``(N,)``, nats.
        rho: L2 norm of each sentence's perturbation, at least 0.

    Returns:
        Both losses, and the norms of the gradients.

    Refusals:
        ``Unsupported`` if the model has a use of a parameter that no layer rule
        covers.

    State:
        ``.grad`` is not touched; random generators end where one pass would leave
        them, and both passes see the same dropout.

    Cost:
        2 forward passes and 1 backward pass without weight gradients. The engine
        watches the second pass through its graph, but nothing that a backward pass
        would need is kept.

    Example:
        ``l_i = w x_i`` climbs by ``rho |x_i|``:

        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> _ = layer.weight.data.fill_(1.0)
        >>> x = torch.tensor([[3.0], [-4.0], [0.0]])
        >>> adversarial_losses(Engine(layer), lambda: layer(x)[:, 0], rho=0.5).moved
        tensor([ 4.5000, -2.0000,  0.0000])

    Source:
        Zhou et al. 2022, Eq. 2 and Table 4.
    """
    start = RandomState.capture(engine.space)
    try:
        with torch.enable_grad():  # the caller, who only scores, may be in no_grad
            ascent = engine.ascend(losses_function, rho=rho)
            start.replay()
            with (
                torch.autograd.graph.saved_tensors_hooks(_dropped, _refused),
                ascent.perturbed(),
            ):
                perturbed_losses = losses_function().detach()
    except BaseException:
        start.replay()
        raise
    moved = torch.where(ascent.usable.to(perturbed_losses.device), perturbed_losses, ascent.losses)
    return AdversarialLosses(ascent.losses, moved, ascent.norms)


def _dropped(_: Tensor) -> None:
    """Keep nothing of the graph: no backward pass follows."""


def _refused(_: Any) -> Tensor:
    raise RuntimeError("the pass at w + eps_i keeps nothing for a backward pass")
