"""Adversarial losses of a batch's sentences: all at once, or one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deltasam_fairseq.core.graph import differentiate
from deltasam_fairseq.core.vectors import global_norm
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.fairseq_plugin.sharpness.engine_passes import own_projections
from deltasam_fairseq.per_instance import Engine, Unsupported
from deltasam_fairseq.per_instance.risk import adversarial_losses

ENGINES = ("auto", "batched", "loop")


class Pair(NamedTuple):
    """Losses of some sentences.

    Args:
        losses: ``l_i(w)``, nats.
        risks: ``l_i(w + eps_i)``, nats.
    """

    losses: list[float]
    risks: list[float]


def adversarial_loss(
    losses_function: Callable[[], Tensor], params: Sequence[Tensor], *, rho: float
) -> tuple[float, float]:
    """Score one sentence at ``w`` and at the worst point near it.

    Args:
        losses_function: One forward pass, shape ``(1,)``.
        params: Parameters to move; restored bit for bit.
        rho: L2 norm of the perturbation.

    Returns:
        ``l(w)`` and ``l(w + rho g / |g|)``, nats. If the gradient is zero, both are the same.

    Example:
        >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> adversarial_loss(lambda: w.square().sum()[None], [w], rho=0.5)
        (25.0, 30.25)
    """
    with torch.enable_grad():
        loss = losses_function().sum()
        gradient = differentiate(loss, params)
    norm = global_norm(gradient)
    if not torch.isfinite(norm) or norm == 0:
        return loss.item(), loss.item()
    scaled = [part * (rho / norm).to(part.dtype) for part in gradient]
    with torch.no_grad(), WeightSpace.of(params).perturbed(scaled):
        moved = losses_function().sum()
    return loss.item(), moved.item()


class Scorer:
    """Scores batches of one model by the engine that was asked for.

    With ``auto`` a batch that the batched engine refuses is scored sentence by
    sentence; each reason is said once.

    Args:
        model: The model.
        rho: Radius of the neighbourhood.
        engine: One of :data:`ENGINES`.
        say: Told why the loop was taken.

    Attributes:
        scored: How many sentences each engine has scored.
        reasons: Why the batched one refused, each once.
    """

    def __init__(
        self, model: nn.Module, *, rho: float, engine: str, say: Callable[[str], None]
    ) -> None:
        self.scored = {"batched": 0, "loop": 0}
        self.reasons: list[str] = []
        self._model = model
        self._params = [param for param in model.parameters() if param.requires_grad]
        self._rho = rho
        self._engine = None if engine == "loop" else Engine(model)
        self._may_loop = engine != "batched"
        self._say = say

    def score(self, together: Callable[[], Tensor], alone: Sequence[Callable[[], Tensor]]) -> Pair:
        """Score the sentences of a batch.

        Args:
            together: One forward pass of all, shape ``(N,)``.
            alone: One forward pass of each, shape ``(1,)``.

        Returns:
            N losses, N adversarial ones.

        Raises:
            Unsupported: If the batched engine refuses and nothing else was allowed.
        """
        if self._engine is not None:
            try:
                with own_projections(self._model):
                    found = adversarial_losses(self._engine, together, rho=self._rho)
            except Unsupported as refusal:
                if not self._may_loop:
                    raise
                self._explain(str(refusal))
            else:
                self.scored["batched"] += len(alone)
                return Pair(found.losses.tolist(), found.moved.tolist())
        self.scored["loop"] += len(alone)
        pairs = [adversarial_loss(one, self._params, rho=self._rho) for one in alone]
        return Pair([at for at, _ in pairs], [worst for _, worst in pairs])

    @property
    def used(self) -> str:
        """Names of the engines that scored something: ``batched``, or ``batched and loop``."""
        return " and ".join(name for name, count in self.scored.items() if count)

    def _explain(self, reason: str) -> None:
        if reason not in self.reasons:
            self.reasons.append(reason)
            self._say(f"the batched engine cannot do this exactly, so by the loop: {reason}")
