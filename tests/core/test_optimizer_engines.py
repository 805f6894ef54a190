"""``DeltaSAM(method="per_instance")``: the batched engine, and when the loop takes its place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deltasam_fairseq.core import DeltaSAM
from deltasam_fairseq.per_instance import AmbiguousBatch, Unsupported
from tests.core.stepping import sgd, train, twin
from tests.support.compare import assert_close
from tests.support.problems import Calls, Problem, mlp, transformer

RHO = 0.2


def optimizer_of(problem: Problem, **settings: Any) -> DeltaSAM:
    inner = sgd(problem.params, lr=0.1)
    return DeltaSAM(inner, method="per_instance", rho=RHO, model=problem.model, **settings)


@pytest.mark.parametrize("make", [mlp, transformer])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_batched_engine_equals_the_loop(make: Callable[..., Problem], reduction: str) -> None:
    """With dropout, over several updates; a copy made in between goes on alike."""
    loop, batched = make(dropout=0.3), make(dropout=0.3)
    torch.manual_seed(5)
    train(loop, optimizer_of(loop, engine="loop", reduction=reduction), 4)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    optimizer = optimizer_of(batched, engine="batched", reduction=reduction)
    train(batched, optimizer, 2)
    model, optimizer = copy.deepcopy((batched.model, optimizer))
    batched = Problem(model, batched.score, batched.batches)
    train(batched, optimizer, 2, start=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(batched.named, loop.named, rtol=1e-9, atol=1e-12)
    assert optimizer.report is not None and optimizer.report.sharpness > 0


def test_it_equals_the_slow_twin_and_takes_two_passes() -> None:
    problem = mlp()
    expected = twin("per_instance", problem, rho=RHO)
    closure = Calls(problem.losses())
    optimizer_of(problem).step(closure)
    assert closure.count == 2
    assert_close([p.grad for p in problem.params if p.grad is not None], expected, rtol=1e-9)


@pytest.mark.parametrize("make", [mlp, transformer])
def test_groups_use_the_engine_where_the_model_is_given(make: Callable[..., Problem]) -> None:
    loop, batched = make(dropout=0.3), make(dropout=0.3)
    settings: dict[str, Any] = {"method": "sam", "groups": 2, "rho": RHO}
    torch.manual_seed(5)
    train(loop, DeltaSAM(sgd(loop.params, lr=0.1), **settings), 2)
    torch.manual_seed(5)
    optimizer = DeltaSAM(
        sgd(batched.params, lr=0.1), **settings, model=batched.model, engine="batched"
    )
    train(batched, optimizer, 2)
    assert_close(batched.named, loop.named, rtol=1e-9, atol=1e-12)
    closure = Calls(batched.losses())
    optimizer.step(closure)
    assert closure.count == 2
    # Groups of several batches are no group of one of them.
    one = Calls(batched.losses())
    optimizer.step([one, one])
    assert one.count > 4


def test_layers_may_be_frozen_added_and_scaled_between_steps() -> None:
    loop, batched = mlp(), mlp()
    for problem, engine in ((loop, "loop"), (batched, "batched")):
        model = problem.model
        inner = sgd(model[0].parameters(), lr=0.1)  # type: ignore[index]
        optimizer = DeltaSAM(inner, method="per_instance", rho=RHO, model=model, engine=engine)
        train(problem, optimizer, 1)
        optimizer.add_param_group({"params": list(model[3].parameters()), "rho_factor": 0.5})  # type: ignore[index]
        train(problem, optimizer, 1, start=1)
        model[0].requires_grad_(False)  # type: ignore[index]
        train(problem, optimizer, 1, start=2)
    assert_close(batched.named, loop.named, rtol=1e-9)


def says(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.message for r in caplog.records if "go one after the other" in r.message]


@pytest.mark.parametrize("why", ["a layer without a rule", "adaptive"])
def test_what_it_refuses_for_the_model_goes_by_the_loop_and_is_said_once(
    why: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.weight.sum().exp() if why != "adaptive" else x[:, :1]

    settings: dict[str, Any] = {"adaptive": why == "adaptive"}
    loop, auto, batched = mlp(), mlp(), mlp()
    for problem in (loop, auto, batched):
        torch.manual_seed(2)
        if why != "adaptive":
            problem.model.append(Odd(1, 1).double())  # type: ignore[operator]
    train(loop, optimizer_of(loop, engine="loop", **settings), 3)
    train(auto, optimizer_of(auto, **settings), 3)
    assert_close(auto.named, loop.named, rtol=0)
    (said,) = says(caplog)
    before = copy.deepcopy(batched.params)
    with pytest.raises(Unsupported) as reason:
        train(batched, optimizer_of(batched, engine="batched", **settings), 1)
    assert str(reason.value) in said
    assert_close(batched.params, before, rtol=0)


def test_a_batch_that_does_not_tell_whose_rows_are_whose_goes_by_the_loop_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two updates of such batches, the second of two; an update in between is batched."""

    def make() -> Problem:
        torch.manual_seed(1)
        model = nn.Linear(2, 1).double()
        diagonal = torch.eye(3, dtype=torch.float64)[:, :, None] * torch.randn(3, 3, 2).double()
        plain = torch.randn(3, 3, 2).double()
        mask = torch.eye(3, dtype=torch.float64)
        batches: list[tuple[Tensor, ...]] = [(diagonal, mask), (plain, mask * 0 + 1)]
        return Problem(model, lambda m, b: (m(b[0])[..., 0].square() * b[1]).sum(1), batches)

    loop, auto, batched = make(), make(), make()
    for problem, engine in ((loop, "loop"), (auto, "auto")):
        optimizer = optimizer_of(problem, engine=engine)
        for updates in ([0], [1], [1, 0]):
            counted = [Calls(problem.losses(u)) for u in updates]
            optimizer.zero_grad()
            optimizer.step(counted)
            if engine == "auto" and updates == [1]:
                assert counted[0].count == 2
    assert_close(auto.named, loop.named, rtol=1e-9)
    (said,) = says(caplog)
    assert "does not tell which" in said
    with pytest.raises(AmbiguousBatch):
        optimizer_of(batched, engine="batched").step(batched.losses())


@pytest.mark.parametrize("engine", ["auto", "batched"])
def test_without_a_model_it_names_what_it_needs(engine: str) -> None:
    with pytest.raises(ValueError, match=r'model=….*engine="loop" needs none'):
        DeltaSAM(sgd(mlp().params), method="per_instance", engine=engine)
    DeltaSAM(sgd(mlp().params), method="per_instance", engine="loop")


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="engine must be one of auto, batched, loop"):
        DeltaSAM(sgd(mlp().params), engine="fast")
    with pytest.raises(TypeError, match="model must be a torch.nn.Module"):
        DeltaSAM(sgd(mlp().params), method="per_instance", model=lambda x: x)  # type: ignore[arg-type]
