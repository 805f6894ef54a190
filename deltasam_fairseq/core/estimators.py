"""Estimators of the sentence weights g_i, open to other people's code.

An estimator is called before the ascent pass, looks at the batch however it
likes, and returns a function that turns the ascent pass's own losses into
weights. So the loss at ``w`` that Eq. 5 needs is the one that the ascent
gradient needs anyway: two extra forward passes rather than three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from deltasam_fairseq.core.graph import differentiate
from deltasam_fairseq.core.vectors import global_norm
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.core.weights import instance_weights, slope
from deltasam_fairseq.registry import Registry

LossesFunction = Callable[[], Tensor]


class Weights(NamedTuple):
    """Weights of a batch.

    Attributes:
        values: Shape ``(N,)``, no unit, not negative, detached.
        floored: Scalar, how many of them had their denominator raised to eta.
    """

    values: Tensor
    floored: Tensor


class Estimator(Protocol):
    """What a weight estimator looks like."""

    def __call__(
        self,
        losses_function: LossesFunction,
        params: Sequence[Tensor],
        *,
        rho: float,
        eta: float,
        seed: int,
    ) -> Callable[[Tensor], Weights]:
        """Prepare the weights of one batch.

        Args:
            losses_function: One forward pass: the per-sentence losses, shape
                ``(N,)``, at the current weights and with the batch's own
                dropout, the same at every call.
            params: The parameters that the losses depend on, each once; a
                :class:`~deltasam_fairseq.core.weight_space.WeightSpace` where the
                neighbourhood has a shape. They may be moved, and must be put back.
            rho: Radius of the neighbourhood, L2 norm in weight space.
            eta: Floor under the slope, nats.
            seed: Seed for random draws; the same on every worker.

        Returns:
            A function from the losses at ``w``, shape ``(N,)``, to the weights.
            It gets detached losses and runs no passes of its own: those belong
            before it returns, where the weights may be float32 copies.
        """


ESTIMATORS: Registry[Estimator] = Registry("weight estimator")


@ESTIMATORS.register("finite_difference")
def finite_difference(
    losses_function: LossesFunction,
    params: Sequence[Tensor],
    *,
    rho: float,
    eta: float,
    seed: int,
) -> Callable[[Tensor], Weights]:
    """Eq. 5, the paper's own: one random direction of norm rho, both sides of w."""
    plus, minus = probe(losses_function, params, radius=rho, seed=seed)

    def weigh(losses: Tensor) -> Weights:
        return Weights(
            values=instance_weights(losses, plus, minus, eta=eta),
            floored=(slope(plus, minus) < eta).sum(),
        )

    return weigh


@ESTIMATORS.register("uniform")
def uniform(
    losses_function: LossesFunction,
    params: Sequence[Tensor],
    *,
    rho: float,
    eta: float,
    seed: int,
) -> Callable[[Tensor], Weights]:
    """Equal weights: delta-SAM becomes SAM (Eq. 1)."""
    del losses_function, params, rho, eta, seed
    return uniform_weights


@ESTIMATORS.register("random")
def exponential(
    losses_function: LossesFunction,
    params: Sequence[Tensor],
    *,
    rho: float,
    eta: float,
    seed: int,
) -> Callable[[Tensor], Weights]:
    """Draw the weights from an exponential distribution, as a control for Eq. 5."""
    # They depend on a sentence's place alone: the micro-batches and workers that share a
    # perturbation have the same seed, and so the same weights at the same places.
    del losses_function, params, rho, eta
    generator = torch.Generator().manual_seed(seed)

    def weigh(losses: Tensor) -> Weights:
        values = torch.empty(losses.shape, dtype=torch.float64).exponential_(generator=generator)
        return Weights(
            values=values.to(losses.device), floored=torch.zeros((), device=losses.device)
        )

    return weigh


@ESTIMATORS.register("exact")
def exact(
    losses_function: LossesFunction,
    params: Sequence[Tensor],
    *,
    rho: float,
    eta: float,
    seed: int,
) -> Callable[[Tensor], Weights]:
    """What Eq. 5 estimates, by Hessian-vector products, one sentence at a time."""
    # Under the paper's assumption H_i = a_i ∇l_i ∇l_iᵀ (section 4.1) this is
    # a_i ‖∇l_i‖ = |∇l_iᵀ H_i ∇l_i| / ‖∇l_i‖³. For analysis: it costs N double
    # backward passes, and the model's attention must have a double backward.
    del rho, eta, seed
    with torch.enable_grad():
        losses = losses_function()
        values = torch.stack([_curvature_over_norm(loss, params) for loss in losses])
    weights = Weights(values=values, floored=torch.zeros((), device=values.device))
    return lambda _: weights


def from_norms(name: str, norms: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Turn the norms of the sentences' gradients into weights.

    Args:
        name: ``gibbs``: ``g_i = N exp(λ n_i / n̄) / Σ_j exp(λ n_j / n̄)`` with n̄ the mean norm,
            or ``inverse_norm``: ``g_i = 1 / n_i``, every sentence's gradient at length one.
        norms: n, shape ``(N,)``, at least 0. One that is not finite counts as 0.
        temperature: λ.

    Returns:
        Shape ``(N,)``, float64; with ``inverse_norm`` 0 where the norm is 0.

    Source:
        Luo et al. 2025 (RW-SAM) for the Gibbs distribution. That λ is in units of the mean norm
        is our choice: their schedule is not known to us.
    """
    norms = norms.double().nan_to_num(0.0, 0.0, 0.0)
    if name == "inverse_norm":
        return torch.where(norms > 0, 1 / norms.clamp_min(torch.finfo(norms.dtype).tiny), 0.0)
    mean = norms.mean().clamp_min(torch.finfo(norms.dtype).tiny)
    return torch.softmax(temperature * norms / mean, 0) * len(norms)


@dataclass(frozen=True)
class _OfNorms:
    """Weighs by the norms of the sentences' gradients; a class, so that it can be pickled."""

    name: str

    def __call__(
        self,
        losses_function: LossesFunction,
        params: Sequence[Tensor],
        *,
        rho: float,
        eta: float,
        seed: int,
        temperature: float = 1.0,
    ) -> Callable[[Tensor], Weights]:
        del rho, eta, seed
        space = WeightSpace.of(params)
        with torch.enable_grad():
            losses = losses_function()
            norms = torch.stack(
                [space.steepest_unread(differentiate(one, space))[1] for one in losses]
            )
        values = from_norms(self.name, norms, temperature=temperature)
        weights = Weights(values=values, floored=torch.zeros((), device=values.device))
        return lambda _: weights


ESTIMATORS.register(
    "gibbs", description="RW-SAM: more weight, the longer a sentence's gradient is."
)(_OfNorms("gibbs"))
ESTIMATORS.register(
    "inverse_norm", description="The gradients of all sentences count with the same length."
)(_OfNorms("inverse_norm"))

#: Estimators that need nothing but the norms of the sentences' gradients: the batched engine has
#: them after one pass, and their weighted sum without a backward pass.
OF_NORMS = ("gibbs", "inverse_norm")


def uniform_weights(losses: Tensor) -> Weights:
    """Return a weight of one for every sentence.

    Args:
        losses: Shape ``(N,)``; only its length and device matter.

    Returns:
        Ones in float64, none floored.
    """
    return Weights(
        values=torch.ones_like(losses, dtype=torch.float64, requires_grad=False),
        floored=torch.zeros((), device=losses.device),
    )


def probe(
    losses_function: LossesFunction, params: Sequence[Tensor], *, radius: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Score the batch on both sides of ``w`` along one random direction.

    Args:
        losses_function: One forward pass, shape ``(N,)``.
        params: Parameters to move, or their space; restored bit for bit.
        radius: L2 norm of the direction r.
        seed: Seed of the direction.

    Returns:
        ``l_i(w + r)`` and ``l_i(w - r)``, shape ``(N,)`` each, detached.
    """
    space = WeightSpace.of(params)
    noise = space.gaussian(radius=radius, seed=seed)
    with torch.no_grad(), space.perturbed(noise) as side:
        plus = losses_function().detach()
        side.mirror()
        minus = losses_function().detach()
    return plus, minus


def _curvature_over_norm(loss: Tensor, params: Sequence[Tensor]) -> Tensor:
    gradient = differentiate(loss, params, create_graph=True)  # grad l_i
    fixed = [g.detach() for g in gradient]
    along = sum(((g * f).sum() for g, f in zip(gradient, fixed, strict=True)), loss.new_zeros(()))
    if not along.requires_grad:  # linear in the weights
        return torch.zeros((), dtype=torch.float64, device=loss.device)
    bend = differentiate(along, params)  # H_i grad l_i
    curvature = sum(((f * b).sum() for f, b in zip(fixed, bend, strict=True)), loss.new_zeros(()))
    norm = global_norm(fixed)
    # |grad l_i^T H_i grad l_i| / ||grad l_i||^3
    return (curvature.abs().double() / norm.pow(3)).nan_to_num(0.0).detach()
