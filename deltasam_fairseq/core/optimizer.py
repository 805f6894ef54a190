"""``DeltaSAM``: sharpness-aware training around any PyTorch optimizer."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.core.batches import checked_batches
from deltasam_fairseq.core.checks import not_negative, one_of, positive
from deltasam_fairseq.core.covered import Covered
from deltasam_fairseq.core.estimators import ESTIMATORS, finite_difference
from deltasam_fairseq.core.finer_steps import grouped_step, rows_alone
from deltasam_fairseq.core.instances import ENGINES, Instances
from deltasam_fairseq.core.interplay import (
    gradients_scaled,
    refuse_lost_batches,
    refuse_to_be_stepped_by_scalers,
    scale_of,
    unscale,
)
from deltasam_fairseq.core.noise import seed_for
from deltasam_fairseq.core.precision import is_half
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.core.steps import StepReport, delta_sam_step, plain_step, sam_step
from deltasam_fairseq.core.vectors import unique
from deltasam_fairseq.core.weight_space import WeightSpace

logger = logging.getLogger(__name__)

Closure = Callable[..., Tensor]

_STEPS, _PROBED = "deltasam_steps", "deltasam_probed"


class DeltaSAM(Optimizer):
    """Wrap an optimizer so that each of its steps is sharpness-aware.

    ``step`` takes a closure that runs the forward pass alone and returns one
    loss per sentence; the passes, the perturbation and the backward passes
    happen inside. A list of closures is one update of several batches, with the result of
    the large batch. Gradients already in ``.grad`` stay and are added to, so
    call ``zero_grad`` first as usual.

    Args:
        inner: The optimizer that uses the gradient, with its parameters.
            Learning-rate schedulers may be given either object.
        method: ``delta_sam``, ``sam``, ``per_instance``, or ``none`` for the
            inner optimizer alone.
        rho: L2 norm of the perturbation over all parameters together, at
            least 0; 0 is the inner optimizer alone.
        eta: Floor under the slope of Eq. 5, in the unit of the losses, greater
            than 0.
        estimator: Registered name of the weight estimator.
        reduction: How the descent reduces over sentences, ``mean`` or ``sum``.
        seed: Seed of the random directions; give every worker the same.
        adaptive: Whether every weight moves in proportion to its size (adaptive
            SAM); take a rho about ten times larger.
        groups: With ``sam`` and ``delta_sam``, among how many perturbations the sentences
            of a step are dealt out at random; 1 is the usual.
        model: The model, wrapped or not; ``per_instance`` needs it for its batched engine,
            which ``groups`` of ``sam`` use too where it is given and a step has one batch
            and one worker.
        engine: Of both: ``batched`` takes two passes over a batch and raises
            ``Unsupported`` where that would not be exact; ``auto`` takes the loop over
            sentences or groups there, and says so once in the log; ``loop`` needs no model.
        max_grad_norm: Largest norm of the descent's gradient, which is clipped before
            the inner optimizer uses it. The ascent is not clipped.
        scaler: A GradScaler, for float16. The step does all that it is for: call
            neither its ``step`` nor its ``update``.

    Attributes:
        report: That of the last step, for wrappers that return none.
        steps: How many steps were taken, from which random directions and groups are drawn.
        covered: Positions of the parameters that random directions cover.

    Groups:
        A parameter group may have ``"rho_factor"``, its radius relative to rho
        (0 leaves its parameters alone), and ``"adaptive"``, which overrides
        the argument for its parameters: biases are usually not adaptive.

    Raises:
        TypeError: If ``inner`` is not an optimizer or needs a closure, or the
            seed is no whole number. A value outside its range, the unknown
            name of a method or reduction, an inner optimizer that maximizes, and
            parameters that are complex or sharded are a ``ValueError``, and so is
            ``per_instance`` without a model; the
            unknown name of an estimator is an ``UnknownName``.

    Workers:
        Under DistributedDataParallel a step is that of one process with the
        sentences of all workers, however many each has: a perturbation that is
        shared is computed from all of them, and the descent is reduced over
        all of them. Groups are each worker's own, of its own sentences.
        The report's losses and weights are this worker's. Workers may have
        different numbers of closures.

    Precision:
        The passes behind the weights of Eq. 5 run in float32, also where the
        closure uses autocast. With a scaler, a gradient of the ascent or the descent
        that is not finite, on any worker, leaves the weights where they were: all workers
        skip the update, ``.grad`` is cleared and the scale lowered once. Leaves that the
        inner optimizer does not train get gradients that are still scaled.

    State:
        ``state_dict`` is the inner optimizer's, with a few more entries: how many
        steps were taken, and which parameters the random direction covers (those
        that received a gradient so far), so that a resumed run draws the
        directions it would have drawn. The inner optimizer can load it, and this
        class can load the inner's.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = DeltaSAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
        >>> x, y = torch.randn(8, 3), torch.randn(8)
        >>> report = optimizer.step(lambda: (model(x).squeeze(1) - y).square())
        >>> tuple(report.losses.shape)
        (8,)

    Source:
        Zhou et al. 2022, "Sharpness-Aware Minimization with Dynamic
        Reweighting", Alg. 1.
    """

    # The groups, state and defaults of this object are the inner optimizer's
    # own, so Optimizer.__init__, which would make new ones, is not called.
    def __init__(  # noqa: D107
        self,
        inner: Optimizer,
        *,
        method: str = "delta_sam",
        rho: float = 0.05,
        eta: float = 1e-4,
        estimator: str = "finite_difference",
        reduction: str = "mean",
        seed: int = 1,
        adaptive: bool = False,
        groups: int = 1,
        model: nn.Module | None = None,
        engine: str = "auto",
        max_grad_norm: float | None = None,
        scaler: Any = None,
    ) -> None:
        if not isinstance(inner, Optimizer):
            raise TypeError(
                f"inner must be a torch.optim.Optimizer with its parameters, got {inner!r}"
            )
        closure = inspect.signature(inner.step).parameters.get("closure")
        if isinstance(inner, DeltaSAM) or (closure and closure.default is closure.empty):
            raise TypeError(
                f"inner must be an optimizer that steps without a closure; "
                f"{type(inner).__name__} calls one itself"
            )
        if not isinstance(seed, int):
            raise TypeError(f"seed must be a whole number, got {seed!r}")
        if not isinstance(groups, int) or groups < 1:
            raise ValueError(f"groups must be a whole number of at least 1, got {groups!r}")
        if groups > 1 and method == "per_instance":
            raise ValueError(
                "groups are for sam and delta_sam: with per_instance every sentence has a "
                "perturbation of its own"
            )
        self.groups = groups
        self.inner = inner
        self.method = one_of(method, "method", METHODS)
        self.rho = not_negative(rho, "rho")
        self.eta = positive(eta, "eta")
        self.estimator = ESTIMATORS.get(estimator)
        self.reduction = one_of(reduction, "reduction", ("mean", "sum"))
        self.seed = seed
        self.adaptive = adaptive
        self.max_grad_norm = (
            None if max_grad_norm is None else positive(max_grad_norm, "max_grad_norm")
        )
        self.scaler = scaler
        self.steps = 0
        self.report: StepReport | None = None
        one_of(engine, "engine", ENGINES)
        by_engine = method == "sam" and groups > 1 and model is not None
        self._instances = (
            Instances(model, engine) if by_engine or method == "per_instance" else None
        )
        self.covered: set[int] = set()
        self._warned = False
        self._space()  # refuses what it cannot perturb

    @torch.enable_grad()
    def step(  # type: ignore[override]
        self, closure: Closure | Sequence[Closure] | None = None
    ) -> StepReport:
        """Run the passes of one update and change the weights.

        Args:
            closure: One forward pass of the batch; returns the losses, shape
                ``(N,)``. It must neither call ``backward`` nor ``zero_grad``.
                Of modules that it uses without calling them, it tells by
                :func:`~deltasam_fairseq.core.passes.meet`.
                A list of closures is an update of several batches, which equals that
                of one large batch: they share what a batch shares, and the descent is
                reduced over the sentences of all.
                With ``per_instance``, a closure that has an optional parameter
                ``index`` is called as ``closure(index=i)`` for the loss of
                sentence ``i`` alone, which spares the loop passes over the
                whole batch. With ``groups``, one that has an optional parameter ``rows``
                is called as ``closure(rows=[…])`` for the losses of these sentences alone.

        Returns:
            The report on all batches, also kept in ``report``; its ``losses`` are those at
            the weights before the update. A closure that returns no vector of losses, losses
            without a graph, and a sparse gradient are a ``ValueError``.

        Raises:
            TypeError: If there is no closure.
        """
        several = [closure] if callable(closure) else closure
        if not isinstance(several, Sequence) or not several or not all(map(callable, several)):
            raise TypeError(
                "DeltaSAM.step needs a closure that runs the forward pass and returns one loss "
                "per sentence, or a list of such closures; backward passes happen inside the step"
            )
        if callable(closure):
            refuse_lost_batches()
        space = self._space()
        scale = scale_of(self.scaler, self.trainable())
        with gradients_scaled(self.trainable(), scale):
            self.report = self._passes(space, list(several), scale)
        if scale is None:
            self._clip()
            self.inner.step()
            self.steps += 1
        else:
            self._step_with_scaler(self.report)
        return self.report

    def _step_with_scaler(self, report: StepReport) -> None:
        params = self.trainable()
        overflow = unscale(self.scaler, self.inner, params, overflow=report.overflow)
        if not overflow:
            self._clip()
        self.scaler.step(self.inner)
        self.scaler.update()
        self.report = report._replace(overflow=overflow)
        if overflow:
            self.zero_grad()
        else:
            self.steps += 1

    def _clip(self) -> None:
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.trainable(), self.max_grad_norm)

    def trainable(self) -> list[Tensor]:
        """List the parameters that train, each once."""
        return [p for p in self._everything() if p.requires_grad]

    def _space(self) -> WeightSpace:
        factors: dict[int, float] = {}
        adaptive: set[int] = set()
        for group in self.param_groups:
            if group.get("maximize"):
                raise ValueError(
                    "the inner optimizer has maximize=True, but a sharpness-aware step minimizes "
                    "over the worst of a neighbourhood; return the negative losses instead"
                )
            for param in group["params"]:
                if param.is_complex() or any(k.__name__ == "DTensor" for k in type(param).__mro__):
                    kind = param.dtype if param.is_complex() else "DTensor"
                    raise ValueError(
                        f"a parameter of shape {tuple(param.shape)} is of {kind}, which is not "
                        "supported: parameters must be real and whole"
                    )
                factors[id(param)] = not_negative(group.get("rho_factor", 1.0), "rho_factor")
                if group.get("adaptive", self.adaptive):
                    adaptive.add(id(param))
        return WeightSpace(self.trainable(), factors=factors, adaptive=adaptive)

    def _passes(
        self, space: WeightSpace, closures: Sequence[Closure], scale: float | None
    ) -> StepReport:
        given: dict[str, Any] = {"reduction": self.reduction, "loss_scale": scale}
        if self.method == "none" or self.rho == 0:
            return plain_step(space, closures, **given)
        given["rho"] = self.rho
        seed = seed_for(self.seed, self.steps)
        if self._instances is not None:
            groups = 0 if self.method == "per_instance" else self.groups
            return self._instances.step(space, closures, groups=groups, seed=seed, **given)
        if self.method == "delta_sam":
            self._warn_of_coarse_weights(space)
            given.update(
                eta=self.eta, estimator=self.estimator, probed=self._covered(space, closures[0])
            )
        if self.groups > 1:
            rows = rows_alone(closures, "rows")
            return grouped_step(space, closures, self.groups, seed=seed, losses_of=rows, **given)
        if self.method == "sam":
            return sam_step(space, closures, **given)
        return delta_sam_step(space, closures, seed=seed, **given)

    def _warn_of_coarse_weights(self, params: WeightSpace) -> None:
        coarse = self.estimator is finite_difference and any(map(is_half, params))
        if coarse and not self._warned:
            logger.warning(
                "the parameters have half precision, so that Eq. 5's weights are mostly rounding; "
                'use float32 parameters, under autocast if need be, or method="sam"'
            )
            self._warned = True

    def _covered(self, params: WeightSpace, closure: Closure) -> Covered:
        """Return what the random direction covers, looked for if nothing is known yet."""
        # Positions rather than tensors, because they are saved. They stay what they
        # are when a group is added, at the end.
        covered = Covered(self._everything(), self.covered)
        if not covered.positions:
            randomness = RandomState.capture(params)
            (passes,) = checked_batches(params, closure)
            covered.grow(passes.reached())
            randomness.replay()
        self.covered = covered.positions
        return covered

    def _everything(self) -> list[Tensor]:
        return unique(p for group in self.inner.param_groups for p in group["params"])

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The inner optimizer's parameter groups, not a copy."""
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The inner optimizer's state, not a copy."""
        return self.inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The inner optimizer's default options, not a copy."""
        return self.inner.defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters.

        Args:
            set_to_none: Whether to remove them rather than fill them with zeros.
        """
        self.inner.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Hand one more group of parameters to the inner optimizer.

        Args:
            param_group: The group, as for any PyTorch optimizer.
        """
        self.inner.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the inner optimizer's state and this class's own entries."""
        own = {_STEPS: self.steps, _PROBED: sorted(self.covered)}
        return {**self.inner.state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that this class or the plain inner optimizer saved.

        Args:
            state_dict: The state.
        """
        own = (_STEPS, _PROBED)
        self.inner.load_state_dict({k: v for k, v in state_dict.items() if k not in own})
        self.steps = state_dict.get(_STEPS, 0)
        self.covered = set(state_dict.get(_PROBED, ()))

    def __getattr__(self, name: str) -> Any:
        """Find whatever else an optimizer has (hooks, say) on the inner one."""
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle this object with its inner optimizer."""
        # A learning-rate scheduler hangs a bound ``step`` here; it is not the copy's.
        return {k: v for k, v in self.__dict__.items() if k != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Undo ``__getstate__``."""
        self.__dict__.update(state)

    def __repr__(self) -> str:
        """Return the settings and the inner optimizer."""
        return (
            f"DeltaSAM(method={self.method!r}, rho={self.rho}, eta={self.eta}, "
            f"seed={self.seed}, inner={self.inner!r})"
        )


refuse_to_be_stepped_by_scalers(DeltaSAM)
