"""Groups of sentences with a perturbation each, in the core."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from deltasam_fairseq.core import DeltaSAM, grouped_step, per_instance_step, reference, sam_step
from deltasam_fairseq.core.estimators import finite_difference, uniform
from deltasam_fairseq.core.noise import gaussian_direction
from tests.support.compare import assert_close
from tests.support.problems import Problem, mlp, transformer

RHO, ETA, SEED = 0.2, 1e-3, 5


def gradient(toy: Problem) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in toy.params]


@pytest.mark.parametrize("make", [mlp, transformer])
@pytest.mark.parametrize("weighs", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_each_group_takes_a_step_of_its_own(
    make: Callable[..., Problem], weighs: bool, reduction: str
) -> None:
    toy = make()
    count = len(toy.losses()())
    report = grouped_step(
        toy.params,
        toy.losses(),
        2,
        rho=RHO,
        seed=SEED,
        reduction=reduction,
        eta=ETA,
        estimator=finite_difference if weighs else uniform,
    )
    draw = torch.Generator().manual_seed(SEED)
    noise = gaussian_direction(toy.params, radius=RHO, seed=SEED)
    expected = [torch.zeros_like(p) for p in toy.params]
    for rows in torch.randperm(count, generator=draw).tensor_split(2):

        def some(weights: Any, rows: Tensor = rows) -> Tensor:
            return toy.losses_at(0)(weights)[rows]

        part = (
            reference.delta_sam_gradient(some, toy.params, noise, rho=RHO, eta=ETA)
            if weighs
            else reference.sam_gradient(some, toy.params, rho=RHO)
        )
        for total, one in zip(expected, part, strict=True):
            total.add_(one * len(rows) / (count if reduction == "mean" else 1))
    assert_close(gradient(toy), expected, rtol=1e-9, atol=1e-10)
    assert_close([report.losses], [toy.losses()().detach()], rtol=1e-12)


@pytest.mark.parametrize("make", [mlp, transformer])
def test_one_group_is_sam_and_as_many_as_sentences_are_per_instance(
    make: Callable[..., Problem],
) -> None:
    """With dropout: every group sees the masks of the whole batch."""
    ends = []
    for step in (
        lambda toy: sam_step(toy.params, toy.losses(), rho=RHO),
        lambda toy: grouped_step(toy.params, toy.losses(), 1, rho=RHO, seed=SEED),
        lambda toy: per_instance_step(toy.params, toy.losses(), rho=RHO),
        lambda toy: grouped_step(toy.params, toy.losses(), 99, rho=RHO, seed=SEED),
    ):
        toy = make(dropout=0.3)
        torch.manual_seed(1)
        report = step(toy)
        ends.append((gradient(toy), torch.get_rng_state(), report))
    for one, other in ((0, 1), (2, 3)):
        assert_close(ends[one][0], ends[other][0], rtol=1e-9, atol=1e-10)
        assert torch.equal(ends[one][1], ends[other][1])
        assert_close([ends[one][2].losses], [ends[other][2].losses], rtol=1e-12)
        bent = (ends[i][2].perturbed_losses for i in (one, other))
        assert_close([next(bent)], [next(bent)], rtol=1e-9)


@pytest.mark.parametrize("sizes", [[4], [3, 1]])
def test_rows_alone_are_rows_of_the_batch(sizes: list[int]) -> None:
    calls: list[Any] = []

    def score(toy: Problem, start: int, end: int, rows: Any = None) -> Tensor:
        calls.append(rows)
        losses = toy.losses()()[start:end]
        return losses if rows is None else losses[rows]

    ends, edges = [], [0, *torch.tensor(sizes).cumsum(0).tolist()]
    for alone in (False, True):
        toy = mlp()
        closures: Any = [partial(score, toy, *edge) for edge in pairwise(edges)]
        if not alone:
            closures = [partial(closure, None) for closure in closures]
        optimizer = DeltaSAM(torch.optim.SGD(toy.params, lr=0.1), groups=2, rho=RHO)
        report = optimizer.step(closures)
        assert (report.losses.shape, report.fallbacks) == ((4,), 0)
        assert alone == any(calls)
        ends.append(toy.params)
    assert_close(*ends, rtol=1e-12)


def test_the_optimizer_deals_anew_in_every_step() -> None:
    toy = mlp()
    optimizer = DeltaSAM(torch.optim.SGD(toy.params, lr=0.1), method="sam", groups=2, rho=RHO)
    for update in range(2):
        optimizer.zero_grad()
        report = optimizer.step(toy.losses(update))
        assert (report.perturbed_losses > report.losses).any()
    weighing = DeltaSAM(torch.optim.SGD(toy.params, lr=0.1), groups=2, rho=RHO)
    assert weighing.step(toy.losses()).weights.unique().numel() > 1


@pytest.mark.parametrize(("groups", "method"), [(0, "sam"), (1.5, "sam"), (2, "per_instance")])
def test_groups_that_make_no_sense(groups: Any, method: str) -> None:
    with pytest.raises(ValueError, match="groups"):
        DeltaSAM(torch.optim.SGD(mlp().params, lr=0.1), method=method, engine="loop", groups=groups)
