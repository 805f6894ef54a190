"""Which engine perturbs sentences, or groups of them, one by one: the batched one, or a loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from deltasam_fairseq.core.checks import one_of
from deltasam_fairseq.core.finer_steps import grouped_step, per_instance_step, rows_alone
from deltasam_fairseq.core.groups import dealt, numbered
from deltasam_fairseq.core.steps import StepReport
from deltasam_fairseq.core.weight_space import WeightSpace

if TYPE_CHECKING:
    from deltasam_fairseq.per_instance import Engine

logger = logging.getLogger(__name__)

ENGINES = ("auto", "batched", "loop")


class Instances:
    """Takes the steps of ``per_instance`` and of groups, with the batched engine where it is exact.

    What the engine refuses for the model goes by the loop for the rest of the run, and a batch
    that does not tell whose rows are whose goes by the loop alone. The log says so once. Groups
    of several batches or workers go by the loop too.

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
        groups: int = 0,
        seed: int = 0,
    ) -> StepReport:
        """Take one step; see :func:`~deltasam_fairseq.core.per_instance_step`.

        Args:
            space: The parameters that are perturbed.
            closures: One forward pass of each batch; with ``index`` of one sentence, with
                ``rows`` of some.
            rho: L2 norm of each perturbation.
            reduction: ``mean`` or ``sum`` over sentences.
            loss_scale: Factor on the gradients, for half precision.
            groups: To how many groups with a perturbation the sentences are dealt out, as
                :func:`~deltasam_fairseq.core.grouped_step` does; 0 gives each its own.
            seed: Of the groups.

        Returns:
            The report.
        """
        given: dict[str, Any] = {"rho": rho, "reduction": reduction, "loss_scale": loss_scale}
        dealing = {"groups": partial(_dealt, groups, seed)} if groups else {}
        if not (self._needs_loop or groups and (len(closures) > 1 or _has_others())):
            report = self._batched(space, closures, {**given, **dealing})
            if report is not None:
                return report
        if groups:
            rows = rows_alone(closures, "rows")
            return grouped_step(space, closures, groups, seed=seed, losses_of=rows, **given)
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
                    "the batched engine cannot perturb this model exactly, so sentences, or groups "
                    "of them, go one after the other: %s",
                    reason,
                )
            elif not self._said_of_a_batch:
                self._said_of_a_batch = True
                logger.warning(
                    "in a step they go one after the other, and so they will in others like it, of "
                    "which nothing more is said: %s",
                    reason,
                )
            return None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of a copy what the engine knows; it finds that out again."""
        return {**self.__dict__, "_engine": None}


def _dealt(groups: int, seed: int, losses: Tensor) -> list[list[int]]:
    return [rows for (rows,) in dealt(numbered([len(losses)]), groups, seed)]


def _has_others() -> bool:
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def _unwrapped(model: Any) -> nn.Module:
    """Return the model whose names of parameters a user knows."""
    inside: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    return inside
