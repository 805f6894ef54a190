"""The slow twins themselves, against answers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from deltasam_fairseq.core import reference
from tests.support.compare import assert_close, assert_same_bits, copies
from tests.support.problems import mlp

# Two sentences, l_i = 1/2 a_i (w - b_i)², with gradients a_i (w - b_i) = 2 and -9 at w = 1.
A, B = torch.tensor([2.0, 3.0]).double(), torch.tensor([0.0, 4.0]).double()
W = [torch.tensor([1.0]).double()]


def parabolas(at: Sequence[Tensor]) -> Tensor:
    return 0.5 * A * (at[0] - B).square()


def descent(w: float) -> float:
    return ((A * (w - B)).sum() / 2).item()


def test_plain() -> None:
    assert reference.plain_gradient(parabolas, W)[0].item() == -3.5


def test_sam_goes_a_distance_of_rho_up_the_batch_gradient() -> None:
    assert descent(1 - 0.5) == -4.75
    assert reference.sam_gradient(parabolas, W, rho=0.5)[0].item() == -4.75


def test_per_instance_goes_up_each_gradient_apart() -> None:
    """Sentence 0 ascends to 1.5, sentence 1 to 0.5: (2 * 1.5 + 3 * (0.5 - 4)) / 2."""
    assert reference.per_instance_gradient(parabolas, W, rho=0.5)[0].item() == -3.75


@pytest.mark.parametrize(
    ("weights", "there"), [([1.0, 1.0], 0.5), ([9.0, 1.0], 1.5), ([0.0, 1e-9], 0.5)]
)
def test_weights_decide_which_way_is_up(weights: list[float], there: float) -> None:
    gradient = reference.weighted_gradient(parabolas, W, torch.tensor(weights), rho=0.5)
    assert gradient[0].item() == pytest.approx(descent(there))


def test_the_weights_are_eq_5() -> None:
    """Bend a_i r² over slope 2 r |gradient|, with the floor in reach of the second."""
    noise = [torch.tensor([-0.1]).double()]
    weights = reference.delta_sam_weights(parabolas, W, noise, eta=1e-4)
    assert weights.tolist() == pytest.approx([2 * 0.01 / 0.4, 3 * 0.01 / 1.8])
    floored = reference.delta_sam_weights(parabolas, W, noise, eta=1.0)
    assert floored.tolist() == pytest.approx([2 * 0.01 / 1.0, 3 * 0.01 / 1.8])


def test_delta_sam_puts_the_two_together() -> None:
    """G * gradient = 0.05 * 2 - (0.03 / 1.8) * 9 < 0: down the axis, to 0.5."""
    noise = [torch.tensor([0.1]).double()]
    gradient = reference.delta_sam_gradient(parabolas, W, noise, rho=0.5, eta=1e-4)
    assert gradient[0].item() == pytest.approx(descent(0.5))


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_unusable_weights_become_ones(value: float) -> None:
    def losses(at: Sequence[Tensor]) -> Tensor:
        return torch.ones(3).double() * value + 0 * at[0]

    noise = [torch.tensor([0.1]).double()]
    assert reference.delta_sam_weights(losses, W, noise, eta=1e-4).tolist() == [1, 1, 1]


def test_a_zero_gradient_moves_nothing() -> None:
    at = [torch.zeros(1).double()]
    gradient = reference.sam_gradient(lambda w: 0.5 * w[0].square(), at, rho=0.5)
    assert gradient[0].item() == 0.0


def test_radius_zero_is_the_plain_gradient() -> None:
    problem = mlp()
    losses, at = problem.losses_at(), problem.params
    noise = [torch.randn_like(w) for w in at]
    plain = reference.plain_gradient(losses, at)
    for gradient in (
        reference.sam_gradient(losses, at, rho=0.0),
        reference.delta_sam_gradient(losses, at, noise, rho=0.0, eta=1e-4),
        reference.per_instance_gradient(losses, at, rho=0.0),
    ):
        assert_close(gradient, plain, rtol=1e-12, atol=1e-15)


def test_nothing_is_changed_in_place() -> None:
    problem = mlp()
    losses, at = problem.losses_at(), problem.params
    before, noise = copies(at), [torch.randn_like(w) for w in at]
    noise_before = copies(noise)
    reference.delta_sam_gradient(losses, at, noise, rho=0.1, eta=1e-4)
    reference.per_instance_gradient(losses, at, rho=0.1)
    assert_same_bits(at, before)
    assert_same_bits(noise, noise_before)
    assert all(w.grad is None for w in at)
