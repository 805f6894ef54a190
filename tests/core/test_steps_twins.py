"""The steps are equal to their slow twins, for any shape and with dropout too."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.core import (
    DeltaSAM,
    delta_sam_step,
    per_instance_step,
    plain_step,
    reference,
    sam_step,
)
from deltasam_fairseq.core.noise import seed_for
from tests.core.stepping import (
    ETA,
    INNER,
    RHO,
    SEED,
    STEPS,
    Step,
    after,
    every_problem,
    every_step,
    gradients,
    twin,
)
from tests.support.compare import assert_close, copies
from tests.support.problems import Problem, mlp


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize(
    ("method", "eta"), [*((method, ETA) for method in METHODS), ("delta_sam", 0.1)]
)
@every_problem
def test_five_updates_equal_the_twin(
    make: Callable[[], Problem], method: str, inner: str, eta: float
) -> None:
    fast, slow = make(), make()
    before = copies(fast.named)
    optimizer = DeltaSAM(
        INNER[inner](fast.params), method=method, engine="loop", rho=RHO, eta=eta, seed=SEED
    )
    slow_optimizer = INNER[inner](slow.params)
    for update in range(len(fast.batches)):
        optimizer.zero_grad()
        optimizer.step(fast.losses(update))

        gradient = twin(method, slow, update, seed=seed_for(SEED, update), eta=eta)
        for param, value in zip(slow.params, gradient, strict=True):
            param.grad = value
        slow_optimizer.step()

        assert_close(fast.named, slow.named, rtol=1e-9, atol=1e-11)
    moved = [(p - before[n]).abs().max() for n, p in fast.named.items()]
    assert min(moved) > 1e-4


@every_problem
def test_the_methods_are_told_apart(make: Callable[[], Problem]) -> None:
    """Otherwise equality with the twins would say little."""
    found = {method: twin(method, make()) for method in METHODS}
    for one in METHODS:
        for other in METHODS:
            if one < other:
                with pytest.raises(AssertionError):
                    assert_close(found[one], found[other], rtol=1e-5)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "none"])
@every_problem
def test_with_dropout_every_pass_sees_the_masks_of_the_twin(make, method: str) -> None:
    """The twin's masks are fixed by seeding each of its passes alike."""
    problem = make(dropout=0.3)
    at = problem.losses_at()

    def fixed(weights) -> Tensor:
        torch.manual_seed(77)
        return at(weights)

    problem.losses_at = lambda batch=0: fixed
    expected = twin(method, problem)
    torch.manual_seed(77)
    assert_close(after(STEPS[method], problem), expected, rtol=1e-9, atol=1e-12)


@every_step
@every_problem
def test_the_sum_is_the_mean_times_the_batch(make: Callable[[], Problem], step: Step) -> None:
    mean = after(step, make(), reduction="mean")
    total = after(step, make(), reduction="sum")
    count = len(make().losses()())
    assert_close(total, [count * g for g in mean], rtol=1e-12, atol=1e-15)


def test_the_plain_step_is_a_backward_pass() -> None:
    problem = mlp()
    report = plain_step(problem.params, problem.losses())
    expected = reference.plain_gradient(problem.losses_at(), problem.params)
    assert_close(gradients(problem), expected, rtol=1e-12, atol=1e-15)
    assert report.sharpness == 0 and report.gradient_norm == 0
    assert report.weights.tolist() == [1, 1, 1, 1]
    summed = mlp()
    plain_step(summed.params, summed.losses(), reduction="sum")
    assert_close(gradients(summed), [4 * g for g in expected], rtol=1e-12, atol=1e-15)


@hypothesis.settings(max_examples=30)
@hypothesis.given(
    sentences=st.integers(1, 4),
    width=st.integers(1, 5),
    seed=st.integers(0, 1000),
    rho=st.floats(0.02, 2.0),
    eta=st.sampled_from([1e-6, 1e-3, 1.0]),
)
def test_any_shape_equals_the_twin(
    sentences: int, width: int, seed: int, rho: float, eta: float
) -> None:
    problem = mlp(sentences=sentences, width=width, seed=seed, steps=1)
    for method, run in {
        "sam": lambda: sam_step(problem.params, problem.losses(), rho=rho),
        "delta_sam": lambda: delta_sam_step(
            problem.params, problem.losses(), rho=rho, eta=eta, seed=seed
        ),
        "per_instance": lambda: per_instance_step(problem.params, problem.losses(), rho=rho),
    }.items():
        problem.model.zero_grad()
        report = run()
        assert report.losses.shape == report.weights.shape == (sentences,)
        expected = twin(method, problem, seed=seed, rho=rho, eta=eta)
        assert_close(gradients(problem), expected, rtol=1e-7, atol=1e-9)


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    exponent=st.integers(-37, 30),
    flat=st.sets(st.integers(0, 3)),
    seed=st.integers(0, 1000),
    method=st.sampled_from(sorted(STEPS)),
)
def test_losses_of_any_size_give_finite_gradients(
    exponent: int, flat: set[int], seed: int, method: str
) -> None:
    """Single precision from 1e-37 to 1e30, some sentences without any gradient."""
    problem = mlp(seed=seed, steps=1, dtype=torch.float32)
    factors = torch.tensor([0.0 if i in flat else 1.0 for i in range(4)])
    closure = problem.losses()
    STEPS[method](problem.params, lambda: 10.0**exponent * factors * closure())
    assert all(torch.isfinite(g).all() for g in gradients(problem))
    # So a finite learning rate leaves finite parameters.
