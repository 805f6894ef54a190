"""``DeltaSAM``: sharpness-aware training around any PyTorch optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from deltasam_fairseq.core.checks import METHODS, not_negative, one_of, positive
from deltasam_fairseq.core.estimators import ESTIMATORS
from deltasam_fairseq.core.graph import reached
from deltasam_fairseq.core.noise import seed_for
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.core.steps import (
    StepReport,
    delta_sam_step,
    per_instance_step,
    plain_step,
    sam_step,
)
from deltasam_fairseq.core.vectors import unique


class DeltaSAM(Optimizer):
    """Wrap an optimizer so that each of its steps is sharpness-aware.

    ``step`` takes a closure that runs the forward pass alone and returns one
    loss per sentence; the passes, the perturbation and the backward passes
    happen inside. Gradients already in ``.grad`` stay and are added to, so
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

    Raises:
        TypeError: If ``inner`` is not an optimizer.
        ValueError: If a value is outside its range, or the name of a method,
            estimator or reduction is unknown.

    State:
        ``state_dict`` is the inner optimizer's, with one more entry that counts
        steps, so that a resumed run draws the directions it would have drawn.
        The inner optimizer can load it, and this class can load the inner's.

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
    ) -> None:
        if not isinstance(inner, Optimizer):
            raise TypeError(
                f"inner must be a torch.optim.Optimizer with its parameters, got {inner!r}"
            )
        self.inner = inner
        self.method = one_of(method, "method", METHODS)
        self.rho = not_negative(rho, "rho")
        self.eta = positive(eta, "eta")
        self.estimator = ESTIMATORS.get(estimator)
        self.reduction = one_of(reduction, "reduction", ("mean", "sum"))
        self.seed = seed
        self.steps = 0
        self._probed: list[Tensor] | None = None

    @torch.enable_grad()
    def step(self, closure: Callable[..., Tensor]) -> StepReport:  # type: ignore[override]
        """Run the passes of one batch and update the weights.

        Args:
            closure: One forward pass of the batch; returns the losses, shape
                ``(N,)``. It must neither call ``backward`` nor ``zero_grad``.
                With ``per_instance``, a closure that has a parameter ``index``
                is called as ``closure(index=i)`` for the loss of sentence ``i``
                alone, which spares the loop passes over the whole batch.

        Returns:
            The report; its ``losses`` are those at the weights before the
            update.

        Raises:
            ValueError: If the closure does not return a vector of losses, or a
                gradient is sparse.
        """
        params = self.trainable()
        report = self._passes(params, closure)
        self.inner.step()
        self.steps += 1
        return report

    def trainable(self) -> list[Tensor]:
        """List the parameters that train, each once."""
        return unique(
            p for group in self.inner.param_groups for p in group["params"] if p.requires_grad
        )

    def _passes(self, params: list[Tensor], closure: Callable[..., Tensor]) -> StepReport:
        if self.method == "none" or self.rho == 0:
            return plain_step(params, closure, reduction=self.reduction)
        if self.method == "sam":
            return sam_step(params, closure, rho=self.rho, reduction=self.reduction)
        if self.method == "per_instance":
            alone = "index" in inspect.signature(closure).parameters
            return per_instance_step(
                params,
                closure,
                rho=self.rho,
                loss_of=(lambda index: closure(index=index)) if alone else None,
                reduction=self.reduction,
            )
        return delta_sam_step(
            params,
            closure,
            rho=self.rho,
            eta=self.eta,
            seed=seed_for(self.seed, self.steps),
            estimator=self.estimator,
            probed=self._covered(params, closure),
            reduction=self.reduction,
        )

    def _covered(self, params: list[Tensor], closure: Callable[..., Tensor]) -> list[Tensor]:
        """List the parameters that the random direction covers, found on first use.

        One forward pass, once, finds those that receive a gradient: a part of
        the model that takes no part in the loss would only dilute the probe.
        """
        known = {id(p) for p in params}
        if self._probed is None or any(id(p) not in known for p in self._probed):
            randomness = RandomState.capture(params)
            self._probed = reached(closure().sum(), params)
            randomness.replay()
        return self._probed

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
        self._probed = None

    def state_dict(self) -> dict[str, Any]:
        """Return the inner optimizer's state and the number of steps taken."""
        return {**self.inner.state_dict(), "deltasam_steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that this class or the plain inner optimizer saved.

        Args:
            state_dict: The state.
        """
        self.inner.load_state_dict({k: v for k, v in state_dict.items() if k != "deltasam_steps"})
        self.steps = state_dict.get("deltasam_steps", 0)

    def __getattr__(self, name: str) -> Any:
        """Find whatever else an optimizer has (hooks, say) on the inner one."""
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle this object with its inner optimizer."""
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Undo ``__getstate__``."""
        self.__dict__.update(state)

    def __repr__(self) -> str:
        """Return the settings and the inner optimizer."""
        return (
            f"DeltaSAM(method={self.method!r}, rho={self.rho}, eta={self.eta}, "
            f"seed={self.seed}, inner={self.inner!r})"
        )
