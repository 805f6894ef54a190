"""What the tests of the steps share: the steps by name, their twins, their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from deltasam_fairseq.core import (
    DeltaSAM,
    StepReport,
    delta_sam_step,
    per_instance_step,
    reference,
    sam_step,
)
from deltasam_fairseq.core.estimators import Estimator, Weights
from deltasam_fairseq.core.noise import gaussian_direction
from tests.support.problems import Problem, mlp, transformer

RHO, ETA, SEED = 0.05, 1e-4, 3

Step = Callable[..., StepReport]

STEPS: dict[str, Step] = {
    "sam": lambda params, losses, rho=RHO, **more: sam_step(params, losses, rho=rho, **more),
    "delta_sam": lambda params, losses, rho=RHO, **more: delta_sam_step(
        params, losses, rho=rho, eta=ETA, seed=SEED, **more
    ),
    "per_instance": lambda params, losses, rho=RHO, **more: per_instance_step(
        params, losses, rho=rho, **more
    ),
}
# With a batch of four.
CALLS = {"sam": 2, "delta_sam": 4, "per_instance": 1 + 2 * 4}

every_step = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
every_problem = pytest.mark.parametrize("make", [mlp, transformer])


def sgd(params: Iterable[Any], lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=lr, momentum=0.9)


INNER: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "momentum": lambda params: sgd(params, lr=0.1),
    # The usual eps of 1e-8 would blow rounding errors up where a gradient is zero (a bias of
    # attention keys has no influence).
    "adam": lambda params: torch.optim.Adam(params, lr=0.01, eps=1e-6),
}
every_inner = pytest.mark.parametrize("inner", INNER.values(), ids=INNER)


def twin(
    method: str,
    problem: Problem,
    batch: int = 0,
    *,
    seed: int = SEED,
    rho: float = RHO,
    eta: float = ETA,
) -> list[Tensor]:
    """Return the descent gradient as ``reference.py`` has it."""
    at, losses_at = problem.params, problem.losses_at(batch)
    if method == "none":
        return reference.plain_gradient(losses_at, at)
    if method == "sam":
        return reference.sam_gradient(losses_at, at, rho=rho)
    if method == "per_instance":
        return reference.per_instance_gradient(losses_at, at, rho=rho)
    noise = gaussian_direction(at, radius=rho, seed=seed)
    return reference.delta_sam_gradient(losses_at, at, noise, rho=rho, eta=eta)


def gradients(problem: Problem) -> list[Tensor]:
    """Return the gradients; every parameter must have one."""
    found = [p.grad for p in problem.params if p.grad is not None]
    assert len(found) == len(problem.params)
    return found


def after(step: Step, problem: Problem, **more: object) -> list[Tensor]:
    """Return the gradients after one step from empty ``.grad`` fields."""
    problem.model.zero_grad()
    step(problem.params, problem.losses(), **more)
    return [g.clone() for g in gradients(problem)]


def fixed_weights(*values: float) -> Estimator:
    """Make an estimator that knows the weights already."""

    def estimator(losses_function, params, *, rho, eta, seed) -> Callable[[Tensor], Weights]:
        return lambda losses: Weights(
            torch.tensor(values, dtype=torch.float64).expand(len(losses)), torch.zeros(())
        )

    return estimator


def train(problem: Problem, optimizer: DeltaSAM, updates: int, start: int = 0) -> None:
    for update in range(start, start + updates):
        optimizer.zero_grad()
        optimizer.step(problem.losses(update % len(problem.batches)))


def train_plainly(problem: Problem, optimizer: torch.optim.Optimizer, updates: int) -> None:
    for update in range(updates):
        optimizer.zero_grad()
        problem.losses(update % len(problem.batches))().mean().backward()
        optimizer.step()
