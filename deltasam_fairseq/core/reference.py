"""The slow, obviously correct twins of the steps, as pure functions of the weights.

Nothing is changed in place, nothing is replayed: the loss is a function
``losses_at(weights) -> (N,)`` of explicit weights, and each function returns
the gradient of the descent. These are what the fast steps are tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deltasam_fairseq.core.graph import differentiate

LossesAt = Callable[[Sequence[Tensor]], Tensor]
Stretch = Sequence[Tensor | float]


def gradient(objective: Callable[[Sequence[Tensor]], Tensor], at: Sequence[Tensor]) -> list[Tensor]:
    """Differentiate a scalar function of weights.

    Args:
        objective: The function.
        at: The weights; not changed.

    Returns:
        One gradient per weight tensor; zeros where there is no dependence.
    """
    leaves = [w.detach().clone().requires_grad_() for w in at]
    return differentiate(objective(leaves), leaves)


def plain_gradient(losses_at: LossesAt, at: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of the mean loss at ``w``.

    Args:
        losses_at: Per-sentence losses, shape ``(N,)``, as a function of weights.
        at: The weights ``w``.

    Returns:
        ``(1/N) sum_i grad l_i(w)``.
    """
    return gradient(lambda w: losses_at(w).mean(), at)


def sam_gradient(
    losses_at: LossesAt, at: Sequence[Tensor], *, rho: float, stretch: Stretch | None = None
) -> list[Tensor]:
    """Return SAM's descent gradient (Eq. 1).

    Args:
        losses_at: Per-sentence losses as a function of weights.
        at: The weights ``w``.
        rho: L2 norm of the perturbation.
        stretch: The diagonal of T, for a neighbourhood that is no ball.

    Returns:
        ``(1/N) sum_i grad l_i(w + eps)``, ``eps`` along the batch's gradient.
    """
    count = losses_at(at).numel()
    return weighted_gradient(losses_at, at, torch.ones(count), rho=rho, stretch=stretch)


def delta_sam_gradient(
    losses_at: LossesAt,
    at: Sequence[Tensor],
    noise: Sequence[Tensor],
    *,
    rho: float,
    eta: float,
    stretch: Stretch | None = None,
) -> list[Tensor]:
    """Return delta-SAM's descent gradient (Alg. 1).

    Args:
        losses_at: Per-sentence losses as a function of weights.
        at: The weights ``w``.
        noise: The random direction ``r``, of norm rho; stretched already.
        rho: L2 norm of the perturbation.
        eta: Floor under the slope, nats.
        stretch: The diagonal of T.

    Returns:
        ``(1/N) sum_i grad l_i(w + eps)``, ``eps`` along the weighted gradient.
    """
    weights = delta_sam_weights(losses_at, at, noise, eta=eta)
    return weighted_gradient(losses_at, at, weights, rho=rho, stretch=stretch)


def delta_sam_weights(
    losses_at: LossesAt, at: Sequence[Tensor], noise: Sequence[Tensor], *, eta: float
) -> Tensor:
    """Return the weights of Eq. 5, sentence by sentence.

    Args:
        losses_at: Per-sentence losses as a function of weights.
        at: The weights ``w``.
        noise: The random direction ``r``.
        eta: Floor under the slope, nats.

    Returns:
        Shape ``(N,)``; ones if they are all zero or not all finite.
    """
    plus = losses_at([w + r for w, r in zip(at, noise, strict=True)])
    minus = losses_at([w - r for w, r in zip(at, noise, strict=True)])
    middle = losses_at(at)
    weights = []
    for up, down, mid in zip(plus.tolist(), minus.tolist(), middle.tolist(), strict=True):
        weights.append(abs(up + down - 2 * mid) / max(abs(up - down), eta))
    values = torch.tensor(weights, dtype=torch.float64)
    if not torch.isfinite(values).all() or (values == 0).all():
        return torch.ones_like(values)
    return values


def weighted_gradient(
    losses_at: LossesAt,
    at: Sequence[Tensor],
    weights: Tensor,
    *,
    rho: float,
    stretch: Stretch | None = None,
) -> list[Tensor]:
    """Ascend along a weighted batch's gradient, return the unweighted one there.

    Args:
        losses_at: Per-sentence losses as a function of weights.
        at: The weights ``w``.
        weights: ``g_i``, shape ``(N,)``.
        rho: L2 norm of the perturbation.
        stretch: The diagonal of T.

    Returns:
        ``(1/N) sum_i grad l_i(w + rho v / |v|)`` with ``v`` of Eq. 6.
    """
    ascent = gradient(lambda w: (weights * losses_at(w)).sum(), at)
    return plain_gradient(losses_at, _moved(at, ascent, rho, stretch))


def per_instance_gradient(
    losses_at: LossesAt,
    at: Sequence[Tensor],
    *,
    rho: float,
    stretch: Stretch | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> list[Tensor]:
    """Return the descent gradient with one perturbation per sentence (Eq. 2), or group of them.

    Args:
        losses_at: Per-sentence losses as a function of weights.
        at: The weights ``w``.
        rho: L2 norm of each perturbation.
        stretch: The diagonal of T.
        groups: Sentences that share a perturbation, which is that of their sum.

    Returns:
        ``(1/N) sum_i grad l_i(w + eps_i)``.
    """
    count = losses_at(at).numel()
    total = [torch.zeros_like(w) for w in at]
    for rows in groups or [[index] for index in range(count)]:

        def loss_at(weights: Sequence[Tensor], rows: Sequence[int] = rows) -> Tensor:
            return losses_at(weights)[rows].sum()

        there = gradient(loss_at, _moved(at, gradient(loss_at, at), rho, stretch))
        total = [t + g / count for t, g in zip(total, there, strict=True)]
    return total


def _moved(
    at: Sequence[Tensor], ascent: Sequence[Tensor], rho: float, stretch: Stretch | None
) -> list[Tensor]:
    if stretch is None:
        stretch = [1.0] * len(at)
    norm = torch.stack([((t * v) ** 2).sum() for t, v in zip(stretch, ascent, strict=True)])
    norm = norm.sum().sqrt()
    if not torch.isfinite(norm) or norm == 0:
        return list(at)
    return [w + rho * t**2 * v / norm for w, t, v in zip(at, stretch, ascent, strict=True)]
