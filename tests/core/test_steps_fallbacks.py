"""Weights, losses and gradients that define no ascent: counted, and never nan."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from deltasam_fairseq.core import (
    delta_sam_step,
    per_instance_step,
    plain_step,
)
from tests.core.stepping import (
    ETA,
    SEED,
    STEPS,
    Step,
    after,
    every_step,
    fixed_weights,
    gradients,
)
from tests.support.compare import assert_close, assert_same_bits, copies
from tests.support.problems import Calls, Vector, mlp, vector_problem


@pytest.mark.parametrize(
    "values", [(0.0,), (math.nan,), (math.inf,), (1.0, math.nan, 0.0, 2.0), (-0.0,)]
)
def test_unusable_weights_make_the_step_sam_and_are_counted(values: tuple[float, ...]) -> None:
    expected = after(STEPS["sam"], mlp())
    problem = mlp()
    report = STEPS["delta_sam"](problem.params, problem.losses(), estimator=fixed_weights(*values))
    assert_same_bits(gradients(problem), expected)
    assert report.fallbacks == 1
    assert report.weights.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("values", [(1.7e308,), (5e-324,), (1.7e308, 0.0, 0.0, 1.7e308)])
def test_weights_at_the_ends_of_double_precision_do_no_harm(values: tuple[float, ...]) -> None:
    problem = mlp()
    STEPS["delta_sam"](problem.params, problem.losses(), estimator=fixed_weights(*values))
    assert all(torch.isfinite(g).all() for g in gradients(problem))


def test_losses_that_do_not_bend_make_the_step_sam() -> None:
    """Linear, in numbers that binary holds exactly: all weights are zero."""
    lines = vector_problem(torch.tensor([1.0]), lambda w: torch.cat([w, 2 * w]))
    report = delta_sam_step(lines.params, lines.losses(), rho=0.25, eta=ETA, seed=SEED)
    assert (report.fallbacks, report.weights.tolist()) == (1, [1, 1])
    assert report.perturbed_losses.tolist() == [1.25, 2.5]
    assert gradients(lines)[0].tolist() == [1.5]


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [slice(None), slice(1, 2)])
def test_bad_losses_beside_w_only_make_the_step_sam(call: int, bad: float, where: slice) -> None:
    expected = after(STEPS["sam"], mlp())
    problem = mlp()
    closure = Calls(problem.losses())

    def losses() -> Tensor:
        values = closure()
        if closure.count == call:
            values = values.clone()
            values[where] = bad
        return values

    report = STEPS["delta_sam"](problem.params, losses)
    assert_same_bits(gradients(problem), expected)
    assert report.fallbacks == 1
    assert closure.count == 4


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", [slice(None), slice(1, 2)])
def test_bad_losses_everywhere_leave_what_a_plain_step_leaves(
    name: str, bad: float, where: slice
) -> None:
    """The weights are not perturbed, it is counted, and the inner optimizer's user sees nan."""
    factors = torch.ones(4).double()
    factors[where] = bad
    plain, problem = mlp(), mlp()
    plain_step(plain.params, lambda: factors * plain.losses()())
    before = copies(problem.named)
    report = STEPS[name](problem.params, lambda: factors * problem.losses()())
    left, expected = gradients(problem), gradients(plain)
    if name == "per_instance":  # which multiplies the other sentences by 0: 0 * inf is nan
        left, expected = ([g.nan_to_num(0, 0, 0) for g in grads] for grads in (left, expected))
    assert not all(torch.isfinite(g).all() for g in gradients(problem))
    assert_close(left, expected, rtol=1e-12, atol=1e-15)
    assert report.fallbacks > 0
    assert_same_bits(problem.named, before)


@every_step
def test_bad_losses_at_the_perturbed_weights_only_leave_a_finite_gradient(step: Step) -> None:
    """Half precision near its largest number: fine at w, infinite a step up."""
    model = Vector(torch.tensor([1.0]))
    report = step([model.w], lambda: model.w.square() * (1.0 if model.w < 1.04 else math.inf))
    assert model.w.grad is not None and torch.isfinite(model.w.grad).all()
    assert report.fallbacks > 0


@pytest.mark.parametrize(("name", "fallbacks"), [("sam", 1), ("delta_sam", 2), ("per_instance", 4)])
@pytest.mark.parametrize("factor", [0.0, 1e-300])
def test_a_batch_without_a_gradient_is_not_perturbed(
    name: str, fallbacks: int, factor: float
) -> None:
    """All losses zero; or so small that the norm of their gradient is."""
    problem = mlp()
    report = STEPS[name](problem.params, lambda: factor * factor * problem.losses()())
    assert all(g.eq(0).all() for g in gradients(problem))
    assert report.fallbacks == fallbacks
    assert_same_bits([report.perturbed_losses], [report.losses])


@pytest.mark.parametrize(("name", "fallbacks"), [("sam", 1), ("delta_sam", 2), ("per_instance", 1)])
def test_the_bottom_of_a_valley_stays_where_it_is(name: str, fallbacks: int) -> None:
    problem = vector_problem(torch.zeros(3).double(), lambda w: w.square().sum().reshape(1))
    report = STEPS[name](problem.params, problem.losses())
    assert gradients(problem)[0].eq(0).all()
    assert report.fallbacks == fallbacks


def test_weights_whose_ascent_vanishes_are_dropped_for_uniform_ones() -> None:
    """Sentence 0 bends but is flat at w, sentence 1 slopes but does not bend."""
    problem = vector_problem(torch.tensor([0.0, 1.0]), lambda w: torch.stack([w[0] ** 2, 2 * w[1]]))
    estimator = fixed_weights(1.0, 0.0)
    closure = Calls(problem.losses())
    report = STEPS["delta_sam"](problem.params, closure, estimator=estimator)
    assert (report.fallbacks, report.weights.tolist(), closure.count) == (1, [1, 1], 3)
    expected = after(STEPS["sam"], copy.deepcopy(problem))
    assert_same_bits(gradients(problem), expected)


def test_one_flat_sentence_is_counted_and_the_others_are_perturbed() -> None:
    problem = vector_problem(torch.tensor([0.0, 1.0]), lambda w: w.square())
    report = per_instance_step(problem.params, problem.losses(), rho=0.5)
    assert report.fallbacks == 1
    assert gradients(problem)[0].tolist() == [0.0, 1.5]
