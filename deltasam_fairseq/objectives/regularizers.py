"""Regularizers that compare two views of a batch: R-Drop, R3F, SMART.

A regularizer is a function of a :class:`Batch`, which runs the model, and returns one loss per
sentence. It knows neither the task nor the model, and works for classes, numbers and tokens. To
add one, in a module that your ``--user-dir`` imports::

    @REGULARIZERS.register("mine")
    def mine(batch, settings):
        first, second = batch.views(2)
        return Regularized(batch.losses(first), squared_error(...), (first,))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from deltasam_fairseq.objectives.divergences import divergence, squared_error
from deltasam_fairseq.registry import Registry


@dataclass(frozen=True)
class Outputs:
    """What the model makes of one view of a batch.

    Args:
        logits: Shape ``(N, C)``, or ``(N, T, V)`` for tokens, or predictions ``(N,)``.
        words: Which tokens count, boolean, shape ``(N, T)``; for tokens alone.
    """

    logits: Tensor
    words: Tensor | None = None

    def apart_from(self, other: Outputs) -> Tensor:
        """Return the symmetric divergence, or the squared error of predictions, ``(N,)``."""
        if self.logits.dim() == 1:
            return squared_error(self.logits, other.logits)
        return divergence(self.logits, other.logits, self.words)


class Batch(Protocol):
    """A batch that the model can be run on."""

    def views(self, copies: int, noise: Tensor | None = None) -> list[Outputs]:
        """Run the batch several times over, in one forward pass with dropout of its own for each.

        Args:
            copies: How many.
            noise: Added to the word embeddings, shape ``(copies * N, T, D)``.

        Returns:
            The outputs of each copy.
        """
        ...

    def losses(self, outputs: Outputs) -> Tensor:
        """Return the criterion's own loss of each sentence, shape ``(N,)``."""
        ...

    def noise(self) -> Tensor:
        """Return an empty tensor of the word embeddings' shape ``(N, T, D)``, float32 or wider."""
        ...

    def inner(self) -> Batch:
        """Return the batch for passes whose gradient is nobody's but the noise's."""
        ...

    def teacher(self) -> Batch:
        """Return the batch for passes of the moving average of the weights."""
        ...


@dataclass(frozen=True)
class Settings:
    """The numbers of all regularizers.

    Args:
        weight: Factor of the penalty: R-Drop's α, R3F's and SMART's λ.
        summed: Whether R-Drop's divergence is summed over the batch where losses are averaged.
        noise: Distribution of R3F's noise, ``uniform`` or ``normal``.
        r3f_eps: Its half width or standard deviation.
        eps: Radius of SMART's ∞-ball.
        step: Length of a step of SMART's ascent, in the ∞-norm.
        sigma: Standard deviation of its start.
        steps: Number of steps.
        bregman: μ, factor of SMART's proximal term; 0 leaves it out.
    """

    weight: float = 1.0
    summed: bool = False
    noise: str = "uniform"
    r3f_eps: float = 1e-5
    eps: float = 1e-5
    step: float = 1e-3
    sigma: float = 1e-5
    steps: int = 1
    bregman: float = 0.0


class Regularized(NamedTuple):
    """What a regularizer returns.

    Attributes:
        losses: The objective without the penalty, shape ``(N,)``.
        penalty: What ``weight`` multiplies, shape ``(N,)``.
        shown: The views whose losses are logged, as their mean.
    """

    losses: Tensor
    penalty: Tensor
    shown: Sequence[Outputs]


Regularizer = Callable[[Batch, Settings], Regularized]

REGULARIZERS: Registry[Regularizer] = Registry("regularizer")


@REGULARIZERS.register("none")
def plain(batch: Batch, settings: Settings) -> Regularized:
    """The criterion's own loss of one view."""
    del settings
    (only,) = batch.views(1)
    losses = batch.losses(only)
    return Regularized(losses, torch.zeros_like(losses), (only,))


@REGULARIZERS.register("rdrop")
def r_drop(batch: Batch, settings: Settings) -> Regularized:
    """Both views' losses and half of both divergences (Liang et al. 2021)."""
    first, second = batch.views(2)
    penalty = first.apart_from(second)
    if first.logits.dim() > 1:
        penalty = penalty / 2
    if settings.summed:
        # Cross entropy as a mean over the batch, KL as a sum: α times the batch's size.
        penalty = penalty * len(penalty)
    return Regularized(batch.losses(first) + batch.losses(second), penalty, (first, second))


@REGULARIZERS.register("r3f")
def r3f(batch: Batch, settings: Settings) -> Regularized:
    """The clean view's loss and its divergence from a noised one (Aghajanyan et al. 2020)."""
    noise = batch.noise()
    if settings.noise == "uniform":
        noise.uniform_(-settings.r3f_eps, settings.r3f_eps)
    else:
        noise.normal_(0, settings.r3f_eps)
    clean, noised = batch.views(2, torch.cat([torch.zeros_like(noise), noise]))
    return Regularized(batch.losses(clean), clean.apart_from(noised), (clean,))


@REGULARIZERS.register("smart")
def smart(batch: Batch, settings: Settings) -> Regularized:
    """Smoothness within an ∞-ball, and near the moving average (Jiang et al. 2020)."""
    noise = worst_noise(batch.inner(), settings)
    clean, noised = batch.views(2, torch.cat([torch.zeros_like(noise), noise]))
    losses = batch.losses(clean)
    if settings.bregman:
        with torch.no_grad():
            (before,) = batch.teacher().views(1)
        torch.clear_autocast_cache()
        losses = losses + settings.bregman * clean.apart_from(before)
    return Regularized(losses, clean.apart_from(noised), (clean,))


@torch.enable_grad()
def worst_noise(batch: Batch, settings: Settings) -> Tensor:
    """Climb from random noise to where the outputs differ most, by projected steps.

    Args:
        batch: Its gradients go to the noise alone.
        settings: ``sigma``, ``steps``, ``step`` and ``eps``.

    Returns:
        Shape ``(N, T, D)``, each entry at most ``eps``: Algorithm 1 as published. (The released
        code divides by the noise's own norm after each step, which makes it about 1.)
    """
    noise = batch.noise().normal_(0, settings.sigma)
    with torch.no_grad():
        (clean,) = batch.views(1)
    torch.clear_autocast_cache()  # its casts were made without a graph
    for _ in range(settings.steps):
        noise.requires_grad_()
        (noised,) = batch.views(1, noise)
        (gradient,) = torch.autograd.grad(noised.apart_from(clean).sum(), noise)
        # Each sentence's gradient at an ∞-norm of one; a sentence without one stays.
        largest = gradient.abs().amax((1, 2), keepdim=True)
        largest = torch.where(torch.isfinite(largest) & (largest > 0), largest, torch.inf)
        noise = (noise.detach() + settings.step * gradient.nan_to_num() / largest).clamp_(
            -settings.eps, settings.eps
        )
    return noise.detach().clamp_(-settings.eps, settings.eps)
