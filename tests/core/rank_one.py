"""Losses whose curvature is known: what Eq. 5 estimates, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.support.problems import seeded


@dataclass
class RankOne:
    """``l_i(w) = exp(c_i x_iᵀ w) / c_i``, whose Hessian is ``a_i ∇l_i ∇l_iᵀ``.

    The paper's assumption of section 4.1, met exactly, with
    ``a_i = c_i exp(-c_i x_iᵀ w)`` and so ``a_i ‖∇l_i‖ = c_i ‖x_i‖``.

    Args:
        x: Inputs, shape ``(N, D)``.
        c: Rates, shape ``(N,)``, positive.
        w: Weights, shape ``(D,)``.
    """

    x: Tensor
    c: Tensor
    w: Tensor

    def losses(self, at: Tensor) -> Tensor:
        """Return the losses at weights of shape ``(..., D)``, shape ``(..., N)``."""
        return torch.exp(self.c * (at @ self.x.T)) / self.c

    @property
    def gradient_norms(self) -> Tensor:
        """``‖∇l_i‖``, shape ``(N,)``."""
        return torch.exp(self.c * (self.w @ self.x.T)) * self.x.norm(dim=1)

    @property
    def curvature_times_norm(self) -> Tensor:
        """``a_i ‖∇l_i‖``, shape ``(N,)``: what Eq. 5 estimates."""
        return self.c * self.x.norm(dim=1)


def rank_one(*, sentences: int = 6, width: int = 5, seed: int = 0) -> RankOne:
    """Make a rank-one problem in double precision."""
    with seeded(seed):
        return RankOne(
            x=torch.randn(sentences, width, dtype=torch.float64),
            c=0.2 + torch.rand(sentences, dtype=torch.float64),
            w=0.3 * torch.randn(width, dtype=torch.float64),
        )
