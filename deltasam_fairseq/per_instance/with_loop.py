"""The batched engine where it is exact, and the loop where it is not."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import Tensor, nn

from deltasam_fairseq.core.steps import StepReport, per_instance_step
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.per_instance.engine import Engine
from deltasam_fairseq.per_instance.errors import AmbiguousBatch, Unsupported
from deltasam_fairseq.per_instance.step import batched_per_instance_step

logger = logging.getLogger(__name__)


class InstanceSteps:
    """Per-instance steps of one model; keep it, its engine learns the model's layouts.

    Args:
        model: The model, unwrapped.
        space: The parameters that are perturbed.
        engine: ``batched``, ``loop``, or ``auto``: the loop where the batch cannot be exact.
    """

    def __init__(self, model: nn.Module, space: WeightSpace, *, engine: str = "auto") -> None:
        self._model = model
        self._space = space
        self._must_batch = engine == "batched"
        self._loops = engine == "loop"
        self._engine: Engine | None = None
        self._said: set[type] = set()

    def __call__(
        self,
        losses_function: Callable[[], Tensor],
        loss_of: Callable[[int], Tensor],
        *,
        rho: float,
    ) -> StepReport:
        """Add the gradient of the sum of the sentences' losses, each at its own w + eps.

        Args:
            losses_function: One forward pass of the batch, shape ``(N,)``.
            loss_of: The loss of one sentence alone, for the loop.
            rho: L2 norm of each perturbation.

        Returns:
            The report.

        Raises:
            Unsupported: With the engine ``batched``, if the engine is not exact.
        """
        if not self._loops:
            try:
                if self._engine is None:
                    self._engine = Engine(self._model, self._space)
                return batched_per_instance_step(
                    self._engine, losses_function, rho=rho, reduction="sum"
                )
            except Unsupported as reason:
                if self._must_batch and not isinstance(reason, AmbiguousBatch):
                    raise
                self._loops = not isinstance(reason, AmbiguousBatch)
                self._say(reason)
        return per_instance_step(
            self._space, losses_function, rho=rho, loss_of=loss_of, reduction="sum"
        )

    def _say(self, reason: Unsupported) -> None:
        if type(reason) not in self._said:
            what = "all batches go" if self._loops else "this batch, and others like it, goes"
            logger.warning("per_instance: %s sentence by sentence: %s", what, reason)
        self._said.add(type(reason))
