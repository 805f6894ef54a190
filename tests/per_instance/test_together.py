"""Layers that are measured together, biases as columns of their weights, one read of probes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from deltasam_fairseq.benchmarks.counting import Counts, counted
from deltasam_fairseq.core import per_instance_step
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.per_instance import Engine, Plan, batched_per_instance_step
from deltasam_fairseq.per_instance.factors import Dense, Form, Outer, Rows, Summed
from deltasam_fairseq.per_instance.norms import squared_norms, total_squares
from tests.support.compare import assert_close

N, T = 3, 5


def outer(height: int, width: int) -> Outer:
    return Outer(torch.randn(N, T, height).double(), torch.randn(N, T, width).double())


@pytest.mark.parametrize("memory", [64, 4096, 2**28])
def test_norms_together_are_those_of_each(memory: int) -> None:
    plain, biased = [outer(4, 6) for _ in range(5)], [outer(4, 6) for _ in range(4)]
    embedding = Rows(torch.randint(4, (N, T)), torch.randn(N, T, 6).double())
    small = [Dense(torch.randn(N, size).double()) for size in (3, 8)]
    kept: list[tuple[Sequence[Form | Summed], float]] = [([o], 1.0) for o in plain]
    kept += [([o], 0.25) for o in biased]
    kept += [([Summed(o)], 0.25) for o in biased]
    kept += [([embedding, plain[0]], 4.0), ([small[0]], 1.0), ([small[1]], 9.0)]
    expected = torch.zeros(N, dtype=torch.float64)
    for forms, factor in kept:
        formed = [f.formed() if isinstance(f, Summed) else f for f in forms]
        expected += factor * squared_norms(formed, Plan())
    found = total_squares(kept, Plan(memory=memory), torch.zeros(N))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


class Branches(nn.Module):
    """Two layers whose outputs have the very same gradient, with one bias or two."""

    def __init__(self, biases: tuple[bool, bool]) -> None:
        super().__init__()
        self.one, self.two = (nn.Linear(4, 3, bias=bias) for bias in biases)
        self.last = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        losses: Tensor = self.last((self.one(x) + self.two(x)).tanh()).square().sum((1, 2))
        return losses


@pytest.mark.parametrize("biases", [(True, False), (False, True), (True, True), (False, False)])
@pytest.mark.parametrize("factor", [1.0, 0.5, 0.0])
def test_a_bias_belongs_to_its_own_weight(biases: tuple[bool, bool], factor: float) -> None:
    """A weight's bias with a factor of its own, or fixed, is no column of it."""
    x = torch.randn(N, T, 4).double()
    steps: list[Callable[[nn.Module, WeightSpace], object]] = [
        lambda m, space: per_instance_step(space, lambda: m(x), rho=0.3),
        lambda m, space: batched_per_instance_step(Engine(m, space), lambda: m(x), rho=0.3),
    ]
    gradients = []
    for step in steps:
        torch.manual_seed(1)
        model = Branches(biases).double()
        params = list(model.parameters())
        factors = {id(p): factor for p in params if p.dim() == 1}
        step(model, WeightSpace(params, factors=factors))
        gradients.append([p.grad for p in params if p.grad is not None])
    assert_close(gradients[1], gradients[0], rtol=1e-10)


def ascents(layers: int) -> list[Counts]:
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(layers)]
    model, x = nn.Sequential(*parts), torch.randn(N, T, 4)
    engine = Engine(model)
    return [
        counted(lambda: engine.ascend(lambda: model(x).square().sum((1, 2)), rho=0.1))
        for _ in range(3)
    ]


def test_no_ascent_waits_for_every_layer() -> None:
    """The first two probe all layers, and read what they found once."""
    waits = [[found.synchronizations for found in ascents(layers)] for layers in (2, 8)]
    assert waits[0] == waits[1] == [2, 2, 1]
