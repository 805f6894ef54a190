"""The steps: their passes and random draws, their report, and what they refuse."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deltasam_fairseq.core import (
    delta_sam_step,
    plain_step,
    reference,
)
from deltasam_fairseq.core.noise import gaussian_direction
from tests.core.stepping import (
    CALLS,
    ETA,
    RHO,
    SEED,
    STEPS,
    Step,
    after,
    every_problem,
    every_step,
)
from tests.support.compare import assert_close, assert_same_bits, copies
from tests.support.problems import Calls, Problem, Vector, mlp


@pytest.mark.parametrize("name", STEPS)
def test_the_number_of_passes(name: str) -> None:
    problem = mlp()
    closure = Calls(problem.losses())
    STEPS[name](problem.params, closure)
    assert closure.count == CALLS[name]


def test_the_number_of_passes_with_sentences_alone() -> None:
    problem = mlp()
    whole = Calls(problem.losses())
    calls: list[int] = []

    def alone(index: int) -> Tensor:
        calls.append(index)
        return problem.losses()()[index]

    STEPS["per_instance"](problem.params, whole, loss_of=alone)
    assert whole.count == 1
    assert calls == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_number_of_backward_passes() -> None:
    for name, expected in (("sam", 2), ("delta_sam", 2), ("per_instance", 8)):
        problem = mlp()
        seen: list[int] = []
        problem.params[0].register_hook(lambda _: seen.append(1))  # noqa: B023
        STEPS[name](problem.params, problem.losses())
        assert len(seen) == expected, name


@every_step
def test_all_passes_draw_alike_and_the_generators_end_where_one_pass_would(step: Step) -> None:
    problem = mlp(dropout=0.5)
    masks: list[tuple[list[float], float]] = []

    def losses() -> Tensor:
        drawn = problem.losses()()
        masks.append((torch.rand(4).tolist(), random.random()))
        return drawn

    step(problem.params, losses)
    assert len(masks) > 1
    assert all(mask == masks[0] for mask in masks)
    ended = torch.rand(4).tolist(), random.random()

    torch.manual_seed(0), random.seed(0)
    losses()
    assert ended == (torch.rand(4).tolist(), random.random())
    assert ended != masks[0]


@every_step
def test_two_steps_draw_different_masks(step: Step) -> None:
    problem = mlp(dropout=0.5)
    state = torch.get_rng_state()
    first = after(step, problem)
    assert not torch.equal(torch.get_rng_state(), state)
    with pytest.raises(AssertionError):
        assert_close(after(step, problem), first, rtol=1e-3)


def test_sentences_alone_share_masks_between_their_two_passes_only() -> None:
    problem = mlp()
    drawn: list[float] = []

    def alone(index: int) -> Tensor:
        drawn.append(torch.rand(()).item())
        return problem.losses()()[index]

    STEPS["per_instance"](problem.params, problem.losses(), loss_of=alone)
    assert drawn[0::2] == drawn[1::2]
    assert len(set(drawn)) == 4
    after_it = torch.rand(()).item()
    torch.manual_seed(0)
    assert torch.rand(5).tolist() == [*drawn[0::2], after_it]


@every_problem
def test_the_report_of_delta_sam(make: Callable[[], Problem]) -> None:
    problem = make()
    at, params = problem.losses_at(), problem.params
    report = STEPS["delta_sam"](params, problem.losses())
    noise = gaussian_direction(params, radius=RHO, seed=SEED)
    weights = reference.delta_sam_weights(at, params, noise, eta=ETA)
    ascent = reference.gradient(lambda w: (at(w) * weights / weights.mean()).mean(), params)
    norm = torch.cat([g.flatten() for g in ascent]).norm()
    there = [w + RHO * g / norm for w, g in zip(params, ascent, strict=True)]
    assert_close([report.losses], [at(params)], rtol=1e-12)
    assert_close([report.weights], [weights], rtol=1e-9)
    assert report.gradient_norm == pytest.approx(norm.item(), rel=1e-9)
    assert_close([report.perturbed_losses], [at(there)], rtol=1e-9)
    sharpness = (at(there) - at(params)).mean().detach()
    assert_close([report.sharpness], [sharpness], rtol=1e-6)
    assert_close([report.effective_sentences], [weights.sum() ** 2 / (weights**2).sum()], rtol=1e-9)
    assert report.fallbacks == 0


@every_problem
def test_the_report_of_per_instance(make: Callable[[], Problem]) -> None:
    problem = make()
    at, params = problem.losses_at(), problem.params
    report = STEPS["per_instance"](params, problem.losses())
    norms = []
    for i in range(len(report.losses)):
        slope = reference.gradient(lambda w: at(w)[i], params)  # noqa: B023
        norms.append(torch.cat([g.flatten() for g in slope]).norm())
        there = [w + RHO * g / norms[i] for w, g in zip(params, slope, strict=True)]
        assert_close([report.perturbed_losses[i]], [at(there)[i]], rtol=1e-9)
    assert_close([report.losses], [at(params)], rtol=1e-12)
    assert report.gradient_norm == pytest.approx(sum(norms).item() / len(norms))
    assert report.weights.eq(1).all()
    assert report.fallbacks == 0


@every_step
def test_the_report_holds_no_graph_and_the_ascent_ascends(step: Step) -> None:
    problem = mlp()
    report = step(problem.params, problem.losses())
    for tensor in (report.losses, report.perturbed_losses, report.weights, report.sharpness):
        assert not tensor.requires_grad
    assert report.sharpness > 0
    assert 1 <= report.effective_sentences <= 4


def test_the_report_counts_floored_weights() -> None:
    problem = mlp()
    for eta, floored in ((1e-12, 0), (1e6, 4)):
        report = delta_sam_step(problem.params, problem.losses(), rho=RHO, eta=eta, seed=SEED)
        assert (report.floored, type(report.floored)) == (floored, int)


def test_the_probe_covers_what_it_is_told_to() -> None:
    problem = mlp()
    part = problem.params[:2]
    noise = gaussian_direction(part, radius=RHO, seed=SEED)
    padded = [*noise, *(torch.zeros_like(p) for p in problem.params[2:])]
    weights = reference.delta_sam_weights(problem.losses_at(), problem.params, padded, eta=ETA)
    report = STEPS["delta_sam"](problem.params, problem.losses(), probed=part)
    assert_close([report.weights], [weights], rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_step
def test_the_weights_go_as_far_as_rho(step: Step, dtype: torch.dtype) -> None:
    """A perturbation that never reaches the weights is the bug that loss curves hide."""
    problem = mlp(sentences=1, dtype=dtype)
    before = copies(problem.params)
    far: list[float] = []

    def losses() -> Tensor:
        gap = [(p - b).flatten() for p, b in zip(problem.params, before.values(), strict=True)]
        far.append(torch.cat(gap).norm().item())
        return problem.losses()()

    step(problem.params, losses)
    assert far[-1] == pytest.approx(RHO, rel=1e-5)
    assert all(f == 0 or f == pytest.approx(RHO, rel=1e-5) for f in far)


@pytest.mark.parametrize("shape", [(), (2, 2), (0,)])
@pytest.mark.parametrize("name", ["plain", *STEPS])
def test_losses_must_be_a_vector(name: str, shape: tuple[int, ...]) -> None:
    step = plain_step if name == "plain" else STEPS[name]
    model = Vector(torch.ones(()))
    with pytest.raises(ValueError, match=r"shape \(N,\) with N > 0; got shape .*reduction='none'"):
        step([model.w], lambda: model.w.expand(shape))
    assert model.w.item() == 1.0 and model.w.grad is None


@every_step
@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf])
def test_rho_must_not_be_negative(step: Step, rho: float) -> None:
    closure = Calls(mlp().losses())
    with pytest.raises(ValueError, match="^rho must be"):
        step(mlp().params, closure, rho=rho)
    assert closure.count == 0


@pytest.mark.parametrize("name", ["plain", *STEPS])
def test_the_reduction_must_be_known(name: str) -> None:
    problem = mlp()
    step = plain_step if name == "plain" else STEPS[name]
    with pytest.raises(ValueError, match="^reduction must be one of mean, sum; got 'max'$"):
        step(problem.params, problem.losses(), reduction="max")
    assert all(p.grad is None for p in problem.params)


def test_eta_must_be_positive() -> None:
    problem = mlp()
    with pytest.raises(ValueError, match="^eta must be greater than 0, got 0$"):
        delta_sam_step(problem.params, problem.losses(), rho=RHO, eta=0, seed=SEED)


@every_step
def test_sparse_gradients_are_refused_and_everything_is_put_back(step: Step) -> None:
    embedding, linear = nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1)
    params = [*linear.parameters(), *embedding.parameters()]
    linear.weight.grad = torch.ones(1, 2)
    before, tokens = copies(params), torch.tensor([1, 3])
    with pytest.raises(ValueError, match="dense gradients"):
        step(params, lambda: linear(embedding(tokens)).squeeze(1).square())
    assert_same_bits(params, before)
    assert linear.weight.grad.eq(1).all()
    assert linear.bias.grad is None and embedding.weight.grad is None
