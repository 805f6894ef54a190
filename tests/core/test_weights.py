"""Eq. 5: its value by hand, its invariances and its expectation."""

from __future__ import annotations

import math

import pytest
import torch

from deltasam_fairseq.core.noise import gaussian_direction
from deltasam_fairseq.core.weights import effective_sentences, instance_weights, slope, usable
from tests.core.rank_one import rank_one


def test_by_hand() -> None:
    """|l+ + l- - 2l| / max(|l+ - l-|, eta), for a bend, a line, a valley and the floor."""
    at = torch.tensor([1.0, 1.0, 0.0, 3.0])
    plus = torch.tensor([2.25, 1.5, 0.5, 3.5])
    minus = torch.tensor([0.25, 0.5, 0.5, 3.5])
    weights = instance_weights(at, plus, minus, eta=0.1)
    torch.testing.assert_close(weights, torch.tensor([0.25, 0.0, 10.0, 10.0]).double())


def test_a_bend_downwards_counts_like_one_upwards() -> None:
    at, plus, minus = torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([0.5])
    up = instance_weights(at, plus, minus, eta=1e-4)
    assert torch.equal(up, instance_weights(-at, -plus, -minus, eta=1e-4))
    assert up > 0


@pytest.mark.parametrize("eta", [1e-4, 1.0])
def test_the_sign_of_r_does_not_matter(eta: float) -> None:
    at, plus, minus = torch.randn(3, 50)
    assert torch.equal(
        instance_weights(at, plus, minus, eta=eta), instance_weights(at, minus, plus, eta=eta)
    )


def test_weights_commute_with_a_permutation_of_the_batch() -> None:
    losses = torch.randn(3, 50)
    order = torch.randperm(50)
    permuted = instance_weights(*losses[:, order], eta=1e-2)
    assert torch.equal(permuted, instance_weights(*losses, eta=1e-2)[order])


def test_eta_is_the_only_scale() -> None:
    """Losses in another unit give the same weights if eta is in that unit too."""
    losses = torch.randn(3, 50, dtype=torch.float64)
    losses[1] = losses[2]  # floored, all of them
    torch.testing.assert_close(
        instance_weights(*losses, eta=0.5), instance_weights(*(8 * losses), eta=4.0)
    )
    assert torch.equal(instance_weights(*losses, eta=0.5), 2 * instance_weights(*losses, eta=1.0))


def test_differences_are_taken_in_double_precision() -> None:
    """In single precision l+ + l- rounds to 16777216, and the bend to 1 + 1 - 2 = 0."""
    at = torch.tensor([2.0**23])
    plus, minus = torch.tensor([2.0**23 + 1]), torch.tensor([2.0**23])
    weights = instance_weights(at, plus, minus, eta=1e-4)
    assert weights.dtype == torch.float64
    assert weights.tolist() == [1.0]
    assert slope(plus, minus).dtype == torch.float64


def test_half_precision_losses_do_not_overflow() -> None:
    big = torch.tensor([60000.0], dtype=torch.float16)
    assert instance_weights(big, big, big / 2, eta=1e-4).tolist() == [1.0]


def test_weights_are_detached() -> None:
    losses = torch.randn(3, 4, requires_grad=True)
    assert not instance_weights(*losses, eta=1e-4).requires_grad
    assert not slope(losses[0], losses[1]).requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_loss_that_is_not_finite_shows_in_its_own_weight_only(bad: float, where: int) -> None:
    losses = torch.randn(3, 4)
    losses[where, 1] = bad
    finite = torch.isfinite(instance_weights(*losses, eta=1e-4))
    assert finite.tolist() == [True, False, True, True]


@pytest.mark.parametrize("shapes", [[(3,), (3,), (2,)], [(3,), (2,), (3,)], [(2, 2)] * 3, [()] * 3])
def test_shapes_must_be_vectors_of_one_length(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="must be vectors of one length, got shapes"):
        instance_weights(*(torch.zeros(s) for s in shapes), eta=1e-4)


@pytest.mark.parametrize("eta", [0.0, -1e-4, math.nan, math.inf])
def test_eta_must_be_positive(eta: float) -> None:
    with pytest.raises(ValueError, match="eta must be"):
        instance_weights(*torch.zeros(3, 2), eta=eta)


def test_an_empty_batch_has_no_weights() -> None:
    assert instance_weights(*torch.zeros(3, 0), eta=1e-4).shape == (0,)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1.0, 0.0], True),
        ([1e-300, 0.0], True),
        ([0.0, 0.0], False),
        ([1.0, math.inf], False),
        ([1.0, math.nan], False),
        ([], False),
    ],
)
def test_usable(weights: list[float], expected: bool) -> None:
    assert usable(torch.tensor(weights, dtype=torch.float64)) is expected


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([3.0] * 5, 5.0), ([0.0, 7.0], 1.0), ([0.0, 0.0], 0.0), ([1.0, 2.0, 3.0], 36 / 14)],
)
def test_effective_sentences(weights: list[float], expected: float) -> None:
    values = torch.tensor(weights, dtype=torch.float64)
    for scale in (1.0, 1e-9, 1e9):
        assert effective_sentences(scale * values).item() == pytest.approx(expected)


DRAWS = 20_000


def test_expectation_under_gaussian_noise() -> None:
    """E[g_i] = sigma / sqrt(2 pi) a_i ‖∇l_i‖, if H_i = a_i ∇l_i ∇l_iᵀ (section 4.2).

    And E[(l_i(w+r) - l_i(w-r))²] = 4 sigma² ‖∇l_i‖²: the paper prints it without
    the 4, which cancels in Eq. 7 and shifts what a value of eta means.
    """
    problem = rank_one()
    sigma = 1e-3
    noise = sigma * torch.randn(DRAWS, len(problem.w), dtype=torch.float64)
    at = problem.losses(problem.w).expand(DRAWS, -1)
    plus, minus = problem.losses(problem.w + noise), problem.losses(problem.w - noise)
    weights = instance_weights(at.flatten(), plus.flatten(), minus.flatten(), eta=1e-12)
    ratio = weights.view(DRAWS, -1).mean(dim=0) / (
        sigma / math.sqrt(2 * math.pi) * problem.curvature_times_norm
    )
    # |z| of a standard normal: standard deviation over mean is sqrt(pi/2 - 1).
    error = math.sqrt((math.pi / 2 - 1) / DRAWS)
    assert (ratio - 1).abs().max() < 4 * error

    ratio = (plus - minus).square().mean(dim=0) / (4 * sigma**2 * problem.gradient_norms**2)
    assert (ratio - 1).abs().max() < 4 * math.sqrt(2 / DRAWS)


def test_expectation_under_rescaled_noise() -> None:
    """With r of norm rho, as section 5.2 has it, |rᵀu| has the mean of a sphere's coordinate."""
    problem = rank_one()
    rho, width = 1e-3, len(problem.w)
    noise = torch.stack(
        [gaussian_direction([problem.w], radius=rho, seed=seed)[0] for seed in range(4_000)]
    )
    at = problem.losses(problem.w).expand(len(noise), -1)
    plus, minus = problem.losses(problem.w + noise), problem.losses(problem.w - noise)
    weights = instance_weights(at.flatten(), plus.flatten(), minus.flatten(), eta=1e-12)
    coordinate = math.gamma(width / 2) / (math.sqrt(math.pi) * math.gamma((width + 1) / 2))
    expected = rho / 2 * coordinate * problem.curvature_times_norm
    ratio = weights.view(len(noise), -1).mean(dim=0) / expected
    spread = math.sqrt(1 / width / coordinate**2 - 1)
    assert (ratio - 1).abs().max() < 4 * spread / math.sqrt(len(noise))
