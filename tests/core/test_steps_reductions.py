"""The steps are equal to one another where they should be: Eq. 5 to 7 at their limits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deltasam_fairseq.core import (
    plain_step,
)
from deltasam_fairseq.core.estimators import Weights, finite_difference
from deltasam_fairseq.core.noise import gaussian_direction
from tests.core.stepping import (
    INNER,
    STEPS,
    Step,
    after,
    every_problem,
    every_step,
    fixed_weights,
    gradients,
)
from tests.support.compare import assert_close, assert_same_bits
from tests.support.problems import Problem, mlp


def train(problem: Problem, step: Step, inner: Callable, updates: int = 5) -> None:
    optimizer = inner(problem.params)
    for update in range(updates):
        optimizer.zero_grad()
        step(problem.params, problem.losses(update))
        optimizer.step()


@pytest.mark.parametrize("name", ["sam", "delta_sam"])
@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_problem
def test_radius_zero_is_the_inner_optimizer_bit_for_bit(make, dtype, inner, name: str) -> None:
    """With dropout on, through all the passes of the step."""
    plain, other = make(dropout=0.3, dtype=dtype), make(dropout=0.3, dtype=dtype)
    torch.manual_seed(5)
    train(plain, plain_step, inner)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    train(other, lambda params, losses: STEPS[name](params, losses, rho=0.0), inner)
    assert_same_bits(other.named, plain.named)
    assert torch.equal(torch.get_rng_state(), state)


def test_radius_zero_per_instance_is_the_plain_gradient() -> None:
    """The same sum, in another order."""
    problem = mlp(dropout=0.3)
    state = torch.get_rng_state()
    expected = after(plain_step, problem)
    torch.set_rng_state(state)
    assert_close(after(STEPS["per_instance"], problem, rho=0.0), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("value", [1.0, 0.1, 1e-200, 3e200])
@every_problem
def test_equal_weights_are_sam(make: Callable[[], Problem], value: float) -> None:
    expected = after(STEPS["sam"], make())
    weighted = after(STEPS["delta_sam"], make(), estimator=fixed_weights(value))
    assert_close(weighted, expected, rtol=1e-12, atol=1e-15)
    if value == 1.0:
        assert_same_bits(weighted, expected)


@pytest.mark.parametrize("value", [1.0, 0.1, 1e-300, 3e300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_problem
def test_a_batch_of_one_is_sam_bit_for_bit_whatever_its_weight(make, dtype, value: float) -> None:
    found = []
    for step in (
        STEPS["sam"],
        STEPS["delta_sam"],
        STEPS["per_instance"],
        lambda p, losses: STEPS["delta_sam"](p, losses, estimator=fixed_weights(value)),
    ):
        torch.manual_seed(5)
        found.append(after(step, make(sentences=1, dropout=0.3, dtype=dtype)))
    for other in found[1:]:
        assert_same_bits(other, found[0])


@pytest.mark.parametrize("factor", [1e-6, 7.0, 1e6])
@every_problem
def test_the_scale_of_the_weights_cancels(make: Callable[[], Problem], factor: float) -> None:
    def scaled(losses_function, params, **settings) -> Callable[[Tensor], Weights]:
        weigh = finite_difference(losses_function, params, **settings)

        def scale(losses: Tensor) -> Weights:
            values, floored = weigh(losses)
            return Weights(factor * values, floored)

        return scale

    expected = after(STEPS["delta_sam"], make())
    assert_close(
        after(STEPS["delta_sam"], make(), estimator=scaled), expected, rtol=1e-11, atol=1e-14
    )


@every_problem
def test_the_sign_of_the_direction_does_not_matter(
    make: Callable[[], Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = after(STEPS["delta_sam"], make())

    def opposite(params, *, radius: float, seed: int) -> list[Tensor]:
        return [-r for r in gaussian_direction(params, radius=radius, seed=seed)]

    monkeypatch.setattr("deltasam_fairseq.core.weight_space.gaussian_direction", opposite)
    assert_close(after(STEPS["delta_sam"], make()), expected, rtol=1e-9, atol=1e-12)


@every_step
def test_the_order_of_the_batch_does_not_matter(step: Step) -> None:
    problem, order = mlp(sentences=5), torch.tensor([3, 0, 4, 1, 2])
    permuted = mlp(sentences=5)
    permuted.batches = [tuple(t[order] for t in batch) for batch in permuted.batches]
    report = step(problem.params, problem.losses())
    other = step(permuted.params, permuted.losses())
    assert_close(gradients(permuted), gradients(problem), rtol=1e-9, atol=1e-12)
    for field in ("losses", "perturbed_losses", "weights"):
        assert_close([getattr(other, field)], [getattr(report, field)[order]], rtol=1e-8)


def test_a_sentence_alone_gives_the_same_as_the_whole_batch() -> None:
    problem = mlp()
    expected = after(STEPS["per_instance"], problem)

    def alone(index: int) -> Tensor:
        batch = tuple(t[index : index + 1] for t in problem.batches[0])
        return problem.score(problem.model, batch)

    assert_close(after(STEPS["per_instance"], problem, loss_of=alone), expected, rtol=1e-12)
