"""What the random direction of ``DeltaSAM`` covers as batches reach one parameter after another."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from deltasam_fairseq.core import DeltaSAM, delta_sam_step
from deltasam_fairseq.core.graph import reached
from deltasam_fairseq.core.noise import seed_for
from tests.core.stepping import sgd
from tests.support.compare import assert_same_bits
from tests.support.problems import Calls, Problem

UPDATES = 6


class StochasticDepth(nn.Module):
    """Every layer but the first is left out by a coin of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))

    def forward(self, x: Tensor, update: int) -> Tensor:
        x = self.layers[0](x).tanh()
        for layer in list(self.layers)[1:]:
            if torch.rand(()) < 0.4:
                x = x + layer(x).tanh()
        return x.sum(1)


class HeadPerBatch(nn.Module):
    """Even batches use one head, odd ones the other; the third is for the last batch."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(3, 3)
        self.heads = nn.ModuleList(nn.Linear(3, 1) for _ in range(3))

    def forward(self, x: Tensor, update: int) -> Tensor:
        head = 2 if update == UPDATES - 1 else update % 2
        return self.heads[head](self.trunk(x).tanh()).squeeze(1)


class ThawingEncoder(nn.Module):
    """The encoder runs without gradients for the first two updates."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor, update: int) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and update >= 2):
            hidden = self.encoder(x).tanh()
        return self.head(hidden).squeeze(1)


@dataclass
class Run:
    """A model in training.

    Args:
        problem: Its batches are the inputs and the number of the update.
        optimizer: Trains it.
    """

    problem: Problem
    optimizer: DeltaSAM

    def go(self, start: int, stop: int) -> None:
        for update in range(start, stop):
            self.optimizer.zero_grad()
            self.optimizer.step(self.problem.losses(update))


def start(make: Callable[[], nn.Module], seed: int = 0) -> Run:
    torch.manual_seed(seed)
    model = make().double()
    batches: list[tuple[Tensor, ...]] = [
        (torch.randn(4, 3).double(), torch.tensor(i)) for i in range(UPDATES)
    ]
    problem = Problem(model, lambda m, batch: m(batch[0], int(batch[1])).square(), batches)
    return Run(problem, DeltaSAM(sgd(problem.params)))


def train_by_hand(run: Run) -> list[set[str]]:
    """Ask every batch what it reaches before its step; return what r covered in each."""
    params, inner = run.problem.params, run.optimizer.inner
    names = {id(p): name for name, p in run.problem.named.items()}
    known: set[int] = set()
    covered = []
    for update in range(UPDATES):
        losses = run.problem.losses(update)
        generator = torch.get_rng_state()
        known |= {id(p) for p in reached(losses().sum(), params)}
        torch.set_rng_state(generator)
        probed = [p for p in params if id(p) in known]
        covered.append({names[id(p)] for p in probed})
        inner.zero_grad()
        seed = seed_for(1, update)
        delta_sam_step(params, losses, rho=0.05, eta=1e-4, seed=seed, probed=probed)
        inner.step()
    return covered


every_model = pytest.mark.parametrize("make", [StochasticDepth, HeadPerBatch, ThawingEncoder])


@every_model
def test_what_a_later_batch_reaches_is_covered_from_then_on(make) -> None:
    """The same numbers, bit for bit, as with an extra pass that looks at every batch first."""
    run, twin = start(make), start(make)
    torch.manual_seed(7)
    covered = train_by_hand(twin)
    assert len(covered[0]) < len(covered[-1])  # a later batch does reach more
    after_twin = torch.get_rng_state()
    torch.manual_seed(7)
    run.go(0, UPDATES)
    assert_same_bits(run.problem.named, twin.problem.named)
    assert torch.equal(torch.get_rng_state(), after_twin)


@every_model
@pytest.mark.parametrize("pause", range(1, UPDATES))
def test_a_run_resumed_in_between_equals_the_undisturbed_one(make, pause: int) -> None:
    straight, first = start(make), start(make)
    torch.manual_seed(7)
    straight.go(0, UPDATES)
    torch.manual_seed(7)
    first.go(0, pause)
    file = io.BytesIO()
    generator = torch.get_rng_state()
    torch.save((first.problem.model.state_dict(), first.optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    second = start(make, seed=1)
    second.problem.batches = first.problem.batches
    second.problem.model.load_state_dict(weights)
    second.optimizer.load_state_dict(state)
    torch.set_rng_state(generator)
    second.go(pause, UPDATES)
    assert_same_bits(second.problem.named, straight.problem.named)


def test_what_was_frozen_meanwhile_is_still_known() -> None:
    run = start(ThawingEncoder)
    run.go(2, 3)
    encoder = run.problem.model.get_submodule("encoder").requires_grad_(False)
    run.go(3, 4)
    encoder.requires_grad_(True)
    closure = Calls(run.problem.losses(4))
    run.optimizer.step(closure)
    assert closure.count == 4  # nothing is looked for or found


def test_gradients_of_earlier_batches_stay_where_a_step_starts_anew() -> None:
    """The step that finds a parameter for the first time starts anew; ``.grad`` is added to."""
    run, twin = start(HeadPerBatch), start(HeadPerBatch)
    run.go(0, 1)
    twin.go(0, 1)
    for r in (run, twin):
        r.optimizer.zero_grad()
    twin.optimizer.step(twin.problem.losses(1))
    alone = [p.grad for p in twin.problem.params]
    for p in run.problem.params:
        p.grad = torch.ones_like(p)
    run.optimizer.step(run.problem.losses(1))
    for p, gradient in zip(run.problem.params, alone, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, torch.ones_like(p) + (0 if gradient is None else gradient))


def test_only_a_step_that_reaches_more_takes_more_passes() -> None:
    run = start(HeadPerBatch)
    calls = [Calls(run.problem.losses(update)) for update in range(4)]
    for closure in calls:
        run.optimizer.step(closure)
    # Eq. 5's four; one that looks, the first time; three in vain, for the second head.
    assert [c.count for c in calls] == [5, 7, 4, 4]


@every_model
def test_the_state_of_a_growing_direction_loads_into_the_inner_optimizer(make) -> None:
    run = start(make)
    run.go(0, 3)
    inner = sgd(run.problem.params)
    inner.load_state_dict(run.optimizer.state_dict())
    inner.step()
