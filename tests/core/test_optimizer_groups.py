"""The parameters of ``DeltaSAM``: groups, learning rates, frozen and tied ones, and hooks."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.utils.checkpoint import checkpoint

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.core import DeltaSAM, StepReport, reference
from deltasam_fairseq.core.noise import gaussian_direction, seed_for
from tests.core.stepping import every_inner, sgd, train, train_plainly
from tests.support.compare import assert_close, assert_same_bits, copies
from tests.support.problems import Calls, Problem, mlp, transformer

every_method = pytest.mark.parametrize("method", METHODS)


@every_method
@pytest.mark.parametrize("given", ["wrapper", "inner"])
def test_a_scheduler_acts_through_either_object(given: str, method: str) -> None:
    problem, plain = mlp(), mlp()
    inner = sgd(problem.params)
    optimizer = DeltaSAM(inner, method=method, engine="loop")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "lr_scheduler.step() before optimizer.step()"
        scheduler = LambdaLR(optimizer if given == "wrapper" else inner, lambda e: 0.5**e)
        rates = []
        for update in range(3):
            train(problem, optimizer, 1, start=update)
            scheduler.step()
            rates.append(inner.param_groups[0]["lr"])
    assert rates == [0.025, 0.0125, 0.00625]

    manual = DeltaSAM(sgd(plain.params), method=method, engine="loop")
    for update in range(3):
        manual.param_groups[0]["lr"] = 0.05 * 0.5**update
        train(plain, manual, 1, start=update)
    assert_same_bits(problem.named, plain.named)


@every_inner
def test_one_cycle_moves_rate_and_momentum(inner: Callable[..., Optimizer]) -> None:
    problem, plain = mlp(), mlp()
    optimizer, plain_optimizer = DeltaSAM(inner(problem.params), method="none"), inner(plain.params)
    for o in (optimizer, plain_optimizer):
        scheduler = OneCycleLR(o, max_lr=0.1, total_steps=10)
        rates = set()
        for _ in range(8):
            if o is optimizer:
                train(problem, o, 1)
            else:
                train_plainly(plain, o, 1)
            scheduler.step()
            rates.add(o.param_groups[0]["lr"])
        assert len(rates) == 8
    assert_same_bits(problem.named, plain.named)
    assert optimizer.param_groups[0]["lr"] == plain_optimizer.param_groups[0]["lr"]


class TwoHeads(nn.Module):
    """A trunk and two heads; the second head is there but only used when switched on."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 1)
        self.both = False
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.trunk(x).tanh()
        return self.first(hidden) + (self.second(hidden) if self.both else 0.0)


def two_heads() -> tuple[Problem, TwoHeads]:
    model, x = TwoHeads(), torch.randn(4, 3).double()
    return Problem(model, lambda m, batch: m(batch[0]).squeeze(1).square(), [(x,)]), model


def check_probe(problem: Problem, covered: list[Tensor], report: StepReport, step: int) -> None:
    """Assert that the weights are those of a direction over some parameters."""
    noise = iter(gaussian_direction(covered, radius=0.05, seed=seed_for(1, step)))
    known = {id(p) for p in covered}
    padded = [next(noise) if id(p) in known else torch.zeros_like(p) for p in problem.params]
    losses_at = problem.losses_at()
    expected = reference.delta_sam_weights(losses_at, problem.params, padded, eta=1e-4)
    assert_close([report.weights], [expected], rtol=1e-8)


def test_the_direction_covers_the_parameters_that_receive_a_gradient() -> None:
    """All of its norm of rho is spent where it matters."""
    problem, model = two_heads()
    optimizer = DeltaSAM(sgd(problem.params, lr=0.0))
    used = [p for n, p in problem.named.items() if not n.startswith("second")]
    for update in range(2):
        check_probe(problem, used, optimizer.step(problem.losses()), update)


def test_a_group_added_later_is_perturbed_probed_and_trained() -> None:
    problem, model = two_heads()
    named = problem.named
    old = [p for n, p in named.items() if not n.startswith("second")]
    optimizer = DeltaSAM(sgd(old))
    optimizer.step(problem.losses())
    model.both = True
    new = [p for n, p in named.items() if n.startswith("second")]
    optimizer.add_param_group({"params": new, "lr": 0.0})
    assert len(optimizer.param_groups) == len(optimizer.inner.param_groups) == 2
    assert optimizer.param_groups[1]["momentum"] == 0.9
    assert len(optimizer.trainable()) == 6

    seen: list[Tensor] = []
    before = copies(named)

    def watch(_: int) -> None:
        seen.append(model.second.weight.detach().clone())

    frozen = copy.deepcopy(problem)
    report = optimizer.step(Calls(problem.losses(), before=watch))
    check_probe(frozen, frozen.params, report, 1)
    assert not torch.equal(seen[-1], before["second.weight"])
    assert_same_bits([named["second.weight"]], [before["second.weight"]])  # lr=0
    assert not torch.equal(named["trunk.weight"], before["trunk.weight"])


@pytest.mark.parametrize("method", ["sam", "delta_sam", "per_instance"])
def test_frozen_parameters_are_left_alone(method: str) -> None:
    problem, model = two_heads()
    trunk = [p for n, p in problem.named.items() if n.startswith("trunk")]
    for param in trunk:
        param.requires_grad_(False)
    before = copies(trunk)
    closure = Calls(problem.losses(), before=lambda _: assert_same_bits(trunk, before))
    optimizer = DeltaSAM(sgd(problem.params), method=method, engine="loop")
    optimizer.step(closure)
    optimizer.step(closure)
    assert_same_bits(trunk, before)
    assert all(p.grad is None and not p.requires_grad for p in trunk)
    assert len(optimizer.trainable()) == 4


def test_parameters_frozen_later_leave_the_direction() -> None:
    problem, model = two_heads()
    model.both = True
    optimizer = DeltaSAM(sgd(problem.params, lr=0.0))
    optimizer.step(problem.losses())
    model.trunk.requires_grad_(False)
    report = optimizer.step(problem.losses())
    check_probe(problem, [p for p in problem.params if p.requires_grad], report, 1)


def test_parameters_unfrozen_later_join_the_direction() -> None:
    problem, model = two_heads()
    model.both = True
    model.trunk.requires_grad_(False)
    optimizer = DeltaSAM(sgd(problem.params, lr=0.0))
    optimizer.step(problem.losses())
    model.trunk.requires_grad_(True)
    check_probe(problem, problem.params, optimizer.step(problem.losses()), 1)


def test_a_resumed_run_with_layer_drop_equals_an_uninterrupted_one() -> None:
    """The layer is dropped in update 0 of both, but not in the first one after resuming."""

    def run(problem: Problem, optimizer: DeltaSAM, updates: range) -> None:
        for update in updates:
            cast("TwoHeads", problem.model).both = update > 0
            optimizer.zero_grad()
            optimizer.step(problem.losses())

    straight, _ = two_heads()
    first = copy.deepcopy(straight)
    run(straight, DeltaSAM(sgd(straight.params)), range(4))
    optimizer = DeltaSAM(sgd(first.params))
    run(first, optimizer, range(2))
    resumed = DeltaSAM(sgd(first.params))
    resumed.load_state_dict(optimizer.state_dict())
    run(first, resumed, range(2, 4))
    assert_same_bits(first.named, straight.named)


def test_activation_checkpointing_hides_no_parameter_from_the_direction() -> None:
    """As fairseq's --checkpoint-activations does; the graph of the loss does not show them."""
    problem, model = two_heads()
    problem.score = lambda _, batch: (
        checkpoint(model.first, model.trunk(batch[0]).tanh(), use_reentrant=True).squeeze(1) ** 2
    )
    optimizer = DeltaSAM(sgd(problem.params, lr=0.0))
    report = optimizer.step(problem.losses())
    assert all(p.grad is not None for p in model.first.parameters())
    used = [p for n, p in problem.named.items() if not n.startswith("second")]
    check_probe(problem, used, report, 0)


@pytest.mark.parametrize("method", ["sam", "delta_sam", "per_instance"])
def test_a_tied_parameter_is_one_parameter(method: str) -> None:
    """Moved once, counted once in the norm, even if it is listed for each of its uses."""
    problem = transformer(sentences=1)
    names = dict(problem.model.named_parameters(remove_duplicate=False))
    assert len(names) == len(problem.params) + 1
    before = copies(problem.params)
    far: list[float] = []

    def measure(_: int) -> None:
        gap = [(p - b).flatten() for p, b in zip(problem.params, before.values(), strict=True)]
        far.append(torch.cat(gap).norm().item())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says that it is listed twice
        inner = torch.optim.SGD(problem.params, lr=0.0)
        inner.param_groups[0]["params"].append(names["output.weight"])
    optimizer = DeltaSAM(inner, method=method, engine="loop")
    assert len(optimizer.trainable()) == len(problem.params)
    optimizer.step(Calls(problem.losses(), before=measure))
    assert far[-1] == pytest.approx(0.05, rel=1e-9)
    assert_same_bits(problem.params, before)


def test_hooks_land_on_the_inner_optimizer() -> None:
    problem = mlp()
    optimizer = DeltaSAM(sgd(problem.params))
    called: list[tuple[str, object]] = []
    optimizer.register_step_pre_hook(lambda o, *_: called.append(("before", o)))
    handle = optimizer.register_step_post_hook(lambda o, *_: called.append(("after", o)))
    optimizer.step(problem.losses())
    assert called == [("before", optimizer.inner), ("after", optimizer.inner)]
    handle.remove()
    optimizer.step(problem.losses())
    assert len(called) == 3


def test_it_is_an_optimizer_and_shows_what_it_is() -> None:
    optimizer = DeltaSAM(sgd([nn.Parameter(torch.ones(1))]), method="sam", rho=0.1, eta=0.5, seed=9)
    assert isinstance(optimizer, Optimizer)
    text = repr(optimizer)
    assert text.startswith("DeltaSAM(method='sam', rho=0.1, eta=0.5, seed=9, inner=SGD (")
    assert "momentum: 0.9" in text


def test_what_neither_has_is_an_attribute_error() -> None:
    optimizer = DeltaSAM(sgd([nn.Parameter(torch.ones(1))]))
    assert not hasattr(optimizer, "no_such_thing")
    with pytest.raises(AttributeError, match="no_such_thing"):
        optimizer.no_such_thing  # noqa: B018
    assert not hasattr(DeltaSAM.__new__(DeltaSAM), "param_groups")
