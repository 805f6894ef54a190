"""How much each sentence counts in the ascent (Eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from deltasam_fairseq.core.checks import positive


def instance_weights(
    losses: Tensor, losses_plus: Tensor, losses_minus: Tensor, *, eta: float
) -> Tensor:
    """Weigh each sentence by how fast its gradient changes along one random direction.

    The three inputs are the same N sentences scored at ``w``, ``w + r`` and
    ``w - r``. Bend over slope, Eq. 5 of the paper:

        g_i = |l_i(w+r) + l_i(w-r) - 2 l_i(w)| / max(|l_i(w+r) - l_i(w-r)|, eta)

    Only ratios between the g_i matter later, because Eq. 7 divides by the
    gradient norm; ``eta`` is the one thing here that has a scale. The
    differences are taken in float64, since the bend is close to the rounding
    error of single-precision losses.

    Args:
        losses: ``l_i(w)``, shape ``(N,)``, nats summed over the sentence's tokens.
        losses_plus: ``l_i(w + r)``, shape ``(N,)``, nats.
        losses_minus: ``l_i(w - r)``, shape ``(N,)``, nats.
        eta: Floor under the slope, nats, greater than zero.

    Returns:
        Shape ``(N,)``, no unit, never negative, detached, float64. Not finite
        where a loss is not finite.

    Raises:
        ValueError: If the shapes differ, are not one-dimensional, or ``eta`` is
            not a positive number.

    Example:
        ``l = w**2`` bends, ``l = w`` does not; both at ``w = 1`` with ``r = 0.5``:

        >>> at, up, down = torch.tensor([[1.0, 1.0], [2.25, 1.5], [0.25, 0.5]])
        >>> instance_weights(at, up, down, eta=1e-4)
        tensor([0.2500, 0.0000], dtype=torch.float64)

    Source:
        Zhou et al. 2022, "Sharpness-Aware Minimization with Dynamic
        Reweighting", section 4.2, Eq. 5.
    """
    positive(eta, "eta")
    shapes = [tuple(t.shape) for t in (losses, losses_plus, losses_minus)]
    if losses.dim() != 1 or len(set(shapes)) != 1:
        raise ValueError(
            f"the losses at w, w + r and w - r must be vectors of one length, got shapes {shapes}"
        )
    here, plus, minus = (t.detach().double() for t in (losses, losses_plus, losses_minus))
    # Second difference, r^T H_i r, over the first one, 2 r^T grad l_i; both of shape (N,).
    return (plus + minus - 2 * here).abs() / slope(plus, minus).clamp_min(eta)


def slope(losses_plus: Tensor, losses_minus: Tensor) -> Tensor:
    """Return ``|l_i(w+r) - l_i(w-r)|``, the denominator of Eq. 5 before its floor.

    Args:
        losses_plus: ``l_i(w + r)``, shape ``(N,)``, nats.
        losses_minus: ``l_i(w - r)``, shape ``(N,)``, nats.

    Returns:
        Shape ``(N,)``, nats, float64, detached.
    """
    return (losses_plus.detach().double() - losses_minus.detach().double()).abs()


def usable(weights: Tensor) -> bool:
    """Tell whether weights can define an ascent: all finite and not all zero.

    Args:
        weights: Shape ``(N,)``, no unit.

    Returns:
        False for an empty vector too.
    """
    return bool(torch.isfinite(weights).all() & (weights > 0).any())


def effective_sentences(weights: Tensor) -> Tensor:
    """Return how many sentences the weights amount to, (sum g)^2 / sum g^2.

    Args:
        weights: Shape ``(N,)``, no unit, not negative.

    Returns:
        Scalar between 1 (one sentence has all the weight) and N (uniform);
        0 if all weights are zero.

    Example:
        >>> effective_sentences(torch.tensor([2.0, 2.0, 0.0]))
        tensor(2.)
    """
    return weights.sum().square() / weights.square().sum().clamp_min(
        torch.finfo(weights.dtype).tiny
    )
