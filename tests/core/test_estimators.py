"""Weight estimators: a contract that each registered one keeps, and each one's own answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian

from deltasam_fairseq.core import DeltaSAM, reference
from deltasam_fairseq.core.estimators import (
    ESTIMATORS,
    Estimator,
    Weights,
    exact,
    exponential,
    finite_difference,
    probe,
    uniform,
    uniform_weights,
)
from deltasam_fairseq.core.noise import gaussian_direction
from tests.core.rank_one import rank_one
from tests.support.compare import assert_close, assert_same_bits, copies
from tests.support.problems import (
    Calls,
    Problem,
    Vector,
    mlp,
    transformer,
    vector_problem,
)


def weigh(
    estimator: Estimator, problem: Problem, *, rho: float = 0.05, eta: float = 1e-4, seed: int = 1
) -> Weights:
    estimate = estimator(problem.losses(), problem.params, rho=rho, eta=eta, seed=seed)
    return estimate(problem.losses()())


@pytest.mark.parametrize("name", ESTIMATORS.names())
@pytest.mark.parametrize("make", [mlp, transformer])
def test_contract(name: str, make: Callable[[], Problem]) -> None:
    """Shape, sign and detachment of the weights; parameters and gradients as before."""
    problem = make()
    before = copies(problem.params)
    places = [p.data_ptr() for p in problem.params]
    problem.params[0].grad = torch.ones_like(problem.params[0])

    weights, floored = weigh(ESTIMATORS.get(name), problem)

    count = len(problem.losses()())
    assert weights.shape == (count,)
    assert torch.isfinite(weights).all() and (weights >= 0).all() and (weights > 0).any()
    assert not weights.requires_grad
    assert floored.shape == () and 0 <= int(floored) <= count
    assert_same_bits(problem.params, before)
    assert [p.data_ptr() for p in problem.params] == places
    assert problem.params[0].grad.eq(1).all()
    assert all(p.grad is None for p in problem.params[1:])


@pytest.mark.parametrize("name", ESTIMATORS.names())
def test_contract_of_the_random_draw(name: str) -> None:
    """The same seed gives the same weights; the default generator does not notice."""
    problem = mlp()
    state = torch.get_rng_state()
    first = weigh(ESTIMATORS.get(name), problem, seed=4).values
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weigh(ESTIMATORS.get(name), problem, seed=4).values, first)


@pytest.mark.parametrize("name", ESTIMATORS.names())
@pytest.mark.parametrize("make", [mlp, transformer])
def test_contract_under_no_grad(name: str, make: Callable[[], Problem]) -> None:
    problem = make()
    expected = weigh(ESTIMATORS.get(name), problem).values
    with torch.no_grad():
        assert torch.equal(weigh(ESTIMATORS.get(name), problem).values, expected)


# Random weights are those of a place in the batch, whatever the sentence.
@pytest.mark.parametrize("name", sorted({*ESTIMATORS.names()} - {"random"}))
def test_contract_of_the_ratios(name: str) -> None:
    """A sentence's weight is its own business: permuting the batch permutes the weights."""
    problem = mlp(sentences=5)
    order = torch.tensor([3, 0, 4, 1, 2])
    expected = weigh(ESTIMATORS.get(name), problem).values[order]
    problem.batches = [tuple(t[order] for t in problem.batches[0])]
    assert_close([weigh(ESTIMATORS.get(name), problem).values], [expected], rtol=1e-8)


@pytest.mark.parametrize("eta", [1e-6, 1e-2, 10.0])
@pytest.mark.parametrize("make", [mlp, transformer])
def test_finite_difference_is_eq_5(make: Callable[[], Problem], eta: float) -> None:
    problem = make()
    noise = gaussian_direction(problem.params, radius=0.05, seed=9)
    expected = reference.delta_sam_weights(problem.losses_at(), problem.params, noise, eta=eta)
    weights, _ = weigh(finite_difference, problem, eta=eta, seed=9)
    assert_close([weights], [expected], rtol=1e-9)


def test_random_weights_are_exponential_and_know_nothing_of_the_sentences() -> None:
    weights = exponential(lambda: torch.empty(0), [], rho=0.05, eta=1e-4, seed=3)
    found = weights(torch.zeros(20_000))
    assert found.floored == 0
    assert found.values.dtype == torch.float64
    # Mean and spread of the distribution are both 1: 20,000 draws come within 5 standard errors.
    assert found.values.mean().item() == pytest.approx(1, abs=0.036)
    assert found.values.std().item() == pytest.approx(1, abs=0.06)
    again = exponential(lambda: torch.empty(0), [], rho=0.01, eta=1.0, seed=3)
    assert torch.equal(again(torch.rand(20_000)).values, found.values)
    other = exponential(lambda: torch.empty(0), [], rho=0.05, eta=1e-4, seed=4)
    assert not torch.equal(other(torch.zeros(20_000)).values, found.values)


def test_random_weights_leave_no_trace_in_the_global_generator() -> None:
    before = torch.get_rng_state()
    weigh(exponential, mlp())
    assert torch.equal(torch.get_rng_state(), before)


def test_finite_difference_ignores_the_sign_of_r() -> None:
    """As a step would meet it: the weights of the direction and of its opposite."""
    problem = mlp()
    r = gaussian_direction(problem.params, radius=0.05, seed=9)
    both = [
        reference.delta_sam_weights(
            problem.losses_at(), problem.params, [sign * d for d in r], eta=1e-4
        )
        for sign in (1, -1)
    ]
    assert_close([both[0]], [both[1]], rtol=1e-10)
    assert_close([weigh(finite_difference, problem, seed=9).values], [both[1]], rtol=1e-9)


def test_finite_difference_takes_two_passes_without_a_graph() -> None:
    problem = mlp()
    modes: list[bool] = []
    closure = Calls(problem.losses(), before=lambda _: modes.append(torch.is_grad_enabled()))
    estimate = finite_difference(closure, problem.params, rho=0.05, eta=1e-4, seed=1)
    assert modes == [False, False]
    estimate(problem.losses()())
    assert closure.count == 2


def test_finite_difference_counts_the_floored() -> None:
    """Slopes of 2 * 0.25, 2 * 0.25 * 3 and 0: one weight, two, three are at the floor."""
    problem = vector_problem(torch.tensor([1.0]), lambda w: torch.cat([w, 3 * w, 0 * w]))
    for eta, floored in [(0.1, 1), (1.0, 2), (2.0, 3)]:
        assert int(weigh(finite_difference, problem, rho=0.25, eta=eta).floored) == floored


@pytest.mark.parametrize("estimator", [finite_difference, exact])
def test_only_the_parameters_given_are_covered(estimator: Estimator) -> None:
    problem = mlp()
    part = problem.params[:1]
    alone = Problem(problem.model, problem.score, problem.batches)
    weights = estimator(alone.losses(), part, rho=0.05, eta=1e-4, seed=1)(alone.losses()()).values
    for other in problem.params[1:]:
        other.requires_grad_(False)
    frozen = estimator(problem.losses(), part, rho=0.05, eta=1e-4, seed=1)(problem.losses()())
    assert_close([weights], [frozen.values], rtol=1e-12)
    for other in problem.params[1:]:
        other.requires_grad_(True)
    assert not torch.allclose(weights, weigh(estimator, problem).values, rtol=1e-3)


def test_probe_scores_both_sides_and_detaches() -> None:
    problem = transformer()
    noise = gaussian_direction(problem.params, radius=0.1, seed=2)
    plus, minus = probe(problem.losses(), problem.params, radius=0.1, seed=2)
    for side, sign in ((plus, 1), (minus, -1)):
        moved = [w + sign * r for w, r in zip(problem.params, noise, strict=True)]
        assert_close([side], [problem.losses_at()(moved)], rtol=1e-12)
        assert not side.requires_grad


def test_the_rank_one_problem_has_the_hessian_it_says() -> None:
    problem = rank_one()
    for index in range(len(problem.c)):

        def loss(at: Tensor, index: int = index) -> Tensor:
            return problem.losses(at)[index]

        slope = jacobian(loss, problem.w)
        torch.testing.assert_close(slope.norm(), problem.gradient_norms[index])
        bend = problem.curvature_times_norm[index] / slope.norm()
        torch.testing.assert_close(hessian(loss, problem.w), bend * torch.outer(slope, slope))


def test_exact_is_the_closed_form_on_the_rank_one_problem() -> None:
    known = rank_one()
    problem = vector_problem(known.w, known.losses)
    weights, floored = weigh(exact, problem)
    assert_close([weights], [known.curvature_times_norm], rtol=1e-10)
    assert int(floored) == 0


def test_exact_agrees_with_the_dense_hessian_of_a_network() -> None:
    problem = mlp(sentences=3, width=2)
    shapes = [p.shape for p in problem.params]
    sizes = [p.numel() for p in problem.params]
    at = torch.cat([p.detach().flatten() for p in problem.params])
    expected = []
    for index in range(3):

        def loss(flat: Tensor, index: int = index) -> Tensor:
            parts = [f.view(s) for f, s in zip(flat.split(sizes), shapes, strict=True)]
            return problem.losses_at()(parts)[index]

        slope, bend = jacobian(loss, at), hessian(loss, at)
        expected.append((slope @ bend @ slope).abs() / slope.norm() ** 3)
    assert_close([weigh(exact, problem).values], [torch.stack(expected)], rtol=1e-9)


def test_finite_difference_tends_to_exact_on_average() -> None:
    """On the rank-one problem, up to one factor that all sentences share."""
    known = rank_one()
    problem = vector_problem(known.w, known.losses)
    mean = torch.stack(
        [
            weigh(finite_difference, problem, rho=1e-3, eta=1e-12, seed=seed).values
            for seed in range(1500)
        ]
    ).mean(dim=0)
    ratio = mean / weigh(exact, problem).values
    # Standard error of a mean of |z|-like draws: 0.76 / sqrt(1500) = 2 %.
    assert ratio.std() / ratio.mean() < 0.05


def test_exact_gives_a_flat_sentence_no_weight() -> None:
    """A zero gradient makes 0 / 0, which is no reason for nan."""
    problem = vector_problem(torch.tensor([0.0, 1.0]).double(), lambda w: w.square())
    assert weigh(exact, problem).values.tolist() == [0.0, 1.0]


def test_exact_gives_a_linear_loss_no_weight() -> None:
    problem = vector_problem(torch.tensor([1.0, 2.0]).double(), lambda w: 3 * w)
    assert weigh(exact, problem).values.tolist() == [0.0, 0.0]


def test_uniform_asks_for_no_pass() -> None:
    problem = mlp()
    closure = Calls(problem.losses())
    estimate = uniform(closure, problem.params, rho=0.05, eta=1e-4, seed=1)
    assert estimate(torch.zeros(3)).values.tolist() == [1, 1, 1]
    assert closure.count == 0


def test_uniform_weights_need_no_gradient() -> None:
    weights, floored = uniform_weights(torch.zeros(2, dtype=torch.float16, requires_grad=True))
    assert (weights.dtype, weights.requires_grad, int(floored)) == (torch.float64, False, 0)


def test_another_estimator_can_be_registered_and_used_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The extension of the README: by loss, in a few lines."""
    monkeypatch.setattr(ESTIMATORS, "_entries", dict(ESTIMATORS._entries))
    monkeypatch.setattr(ESTIMATORS, "_descriptions", dict(ESTIMATORS._descriptions))
    seen: dict[str, object] = {}

    @ESTIMATORS.register("by_loss")
    def by_loss(
        losses_function: Callable[[], Tensor],
        params: Sequence[Tensor],
        *,
        rho: float,
        eta: float,
        seed: int,
    ) -> Callable[[Tensor], Weights]:
        """Weigh a sentence by its loss."""
        seen.update(params=len(params), rho=rho, eta=eta)
        return lambda losses: Weights(losses.detach().double(), torch.zeros(()))

    model = Vector(torch.tensor([1.0, 2.0]))
    optimizer = DeltaSAM(
        torch.optim.SGD(model.parameters(), lr=0.0), estimator="by_loss", rho=0.3, eta=0.2
    )
    report = optimizer.step(model.w.square)
    assert report.weights.tolist() == [1.0, 4.0]
    assert seen == {"params": 1, "rho": 0.3, "eta": 0.2}


def test_a_module_in_half_precision_gets_weights_in_double() -> None:
    linear = nn.Linear(3, 1).bfloat16()
    x = torch.randn(4, 3).bfloat16()
    problem = Problem(linear, lambda m, b: m(b[0]).squeeze(1).square(), [(x,)])
    assert weigh(finite_difference, problem, rho=1.0).values.dtype == torch.float64
