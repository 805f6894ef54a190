"""Other probes for the formula of Eq. 5, beside the registered estimators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deltasam_fairseq.analysis.estimator_quality_subject import Losses
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.core.weights import instance_weights, slope

PLAIN = "no perturbation"
EXACT_ASCENT = "along D itself (Eq. 4)"
#: What is compared with the registered estimators: other probes for the formula of Eq. 5.
IN_FLOAT64 = "Eq. 5, probed in float64"
WIDE = "Eq. 5, probed at radius {radius:g}"
AVERAGED = "Eq. 5, {count} probes at radius {radius:g}"
ALONG = "Eq. 5, r along the batch's gradient"
#: Not an estimate of a_i |grad l_i|: it makes v the sum of the eps_i themselves.
INVERSE = "1 / ‖∇lᵢ‖"


class Probes(NamedTuple):
    """Which probes are tried beside the registered estimators.

    Args:
        radius: Norm of r where it is not rho.
        directions: How many are averaged.
    """

    radius: float = 0.5
    directions: int = 8


class Weighting(NamedTuple):
    """Weights of a batch, with where they are from.

    Args:
        name: For the table.
        values: Shape ``(N,)``, float64.
        floored: Share of the slopes below eta, if any were measured.
    """

    name: str
    values: Tensor
    floored: float | None = None


def both_sides(
    together: Losses, space: WeightSpace, direction: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Score a batch at ``w + r`` and ``w - r`` for a given r, which is consumed."""
    with torch.no_grad(), space.perturbed(direction) as side:
        plus = together().detach()
        side.mirror()
        minus = together().detach()
    return plus, minus


def weighed(name: str, at: Tensor, plus: Tensor, minus: Tensor, *, eta: float) -> Weighting:
    """Apply Eq. 5 to three losses."""
    values = instance_weights(at, plus, minus, eta=eta).cpu()
    return Weighting(name, values, (slope(plus, minus) < eta).double().mean().item())


def averaged(
    name: str, at: Tensor, sides: Sequence[tuple[Tensor, Tensor]], *, eta: float
) -> Weighting:
    """Average over directions before the ratio, as the paper's expectations do.

    The bend's mean over the root of the mean squared slope (the two expectations of section
    4.2), where Eq. 5 has one direction for both.

    Args:
        name: For the table.
        at: Losses at ``w``, shape ``(N,)``.
        sides: Losses at ``w + r`` and ``w - r`` for each direction.
        eta: Floor under the slope, nats.

    Returns:
        The weights.
    """
    bends = [plus.double() + minus.double() - 2 * at.double() for plus, minus in sides]
    slopes = torch.stack([slope(plus, minus) for plus, minus in sides]).square().mean(0).sqrt()
    values = torch.stack(bends).mean(0).abs() / slopes.clamp_min(eta)
    return Weighting(name, values.cpu(), (slopes < eta).double().mean().item())
