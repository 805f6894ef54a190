"""Which engine gives each sentence its own perturbation: the batched one, or the loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deltasam_fairseq.core.checks import one_of
from deltasam_fairseq.core.finer_steps import per_instance_step, rows_alone
from deltasam_fairseq.core.steps import StepReport
from deltasam_fairseq.core.weight_space import WeightSpace

if TYPE_CHECKING:
    from deltasam_fairseq.per_instance import Engine

logger = logging.getLogger(__name__)

ENGINES = ("auto", "batched", "loop")


class Instances:
    """Takes the steps of ``per_instance``, with the batched engine where that is exact.

    What the engine refuses for the model goes by the loop for the rest of the run, and a batch
    that does not tell whose rows are whose goes by the loop alone. The log says so once.

    Args:
        model: The model, possibly wrapped; the loop needs none.
        engine: ``auto``, ``batched``, which never takes the loop, or ``loop``.

    Raises:
        ValueError: If the engine is none of these, or there is no model for it.
        TypeError: If the model is no module.
    """

    def __init__(self, model: nn.Module | None, engine: str) -> None:
        self.name = one_of(engine, "engine", ENGINES)
        if model is None and engine != "loop":
            raise ValueError(
                f'method="per_instance" with engine={engine!r} needs the model: give DeltaSAM '
                'model=…, wrapped or not. engine="loop" needs none, and takes passes of its own '
                "for each sentence"
            )
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
        self._model = model
        self._engine: Engine | None = None
        self._needs_loop = engine == "loop"
        self._said_of_a_batch = False

    def step(
        self,
        space: WeightSpace,
        closures: Sequence[Callable[..., Tensor]],
        *,
        rho: float,
        reduction: str,
        loss_scale: float | None,
    ) -> StepReport:
        """Take one step; see :func:`~deltasam_fairseq.core.per_instance_step`.

        Args:
            space: The parameters that are perturbed.
            closures: One forward pass of each batch; with ``index`` of one sentence.
            rho: L2 norm of each perturbation.
            reduction: ``mean`` or ``sum`` over sentences.
            loss_scale: Factor on the gradients, for half precision.

        Returns:
            The report.
        """
        given: dict[str, Any] = {"rho": rho, "reduction": reduction, "loss_scale": loss_scale}
        if not self._needs_loop:
            report = self._batched(space, closures, given)
            if report is not None:
                return report
        return per_instance_step(space, closures, loss_of=rows_alone(closures, "index"), **given)

    def _batched(
        self, space: WeightSpace, closures: Sequence[Callable[..., Tensor]], given: dict[str, Any]
    ) -> StepReport | None:
        """Take a step with the batched engine, or none if that would not be exact."""
        # The one import that points upwards (docs/architecture.md): the engine is built on the
        # core, and whoever uses the core without it does not load it.
        from deltasam_fairseq.per_instance import (  # noqa: PLC0415
            AmbiguousBatch,
            Engine,
            Unsupported,
            batched_per_instance_step,
        )

        try:
            if self._engine is None:
                self._engine = Engine(_unwrapped(self._model), space)
            self._engine.perturb(space)
            return batched_per_instance_step(self._engine, closures, **given)
        except Unsupported as reason:
            if self.name == "batched":
                raise
            if not isinstance(reason, AmbiguousBatch):
                self._needs_loop = True
                logger.warning(
                    "the batched engine cannot perturb this model exactly, so per_instance goes "
                    "sentence by sentence: %s",
                    reason,
                )
            elif not self._said_of_a_batch:
                self._said_of_a_batch = True
                logger.warning(
                    "a step goes sentence by sentence, and so will others like it, of which "
                    "nothing more is said: %s",
                    reason,
                )
            return None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of a copy what the engine knows; it finds that out again."""
        return {**self.__dict__, "_engine": None}


def _unwrapped(model: Any) -> nn.Module:
    """Return the model whose names of parameters a user knows."""
    inside: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    return inside
