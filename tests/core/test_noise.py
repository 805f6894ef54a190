"""Random directions: their length, their distribution and their independence of everything else."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from deltasam_fairseq.core.noise import gaussian_direction, seed_for
from deltasam_fairseq.core.vectors import global_norm
from tests.support.compare import assert_same_bits
from tests.support.problems import transformer

PARAMS = [torch.zeros(300, 40), torch.zeros(17), torch.zeros(300, 40), torch.zeros(())]


@pytest.mark.parametrize("radius", [0.05, 1e-6, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_norm_is_the_radius(radius: float, dtype: torch.dtype) -> None:
    direction = gaussian_direction([p.to(dtype) for p in PARAMS], radius=radius, seed=1)
    assert global_norm(direction).item() == pytest.approx(radius, rel=1e-6)


def test_radius_zero_is_no_direction() -> None:
    assert global_norm(gaussian_direction(PARAMS, radius=0.0, seed=1)).item() == 0.0


@pytest.mark.parametrize("params", [[], [torch.zeros(0, 3)]])
def test_nothing_to_cover(params: list[torch.Tensor]) -> None:
    direction = gaussian_direction(params, radius=0.05, seed=1)
    assert [d.shape for d in direction] == [p.shape for p in params]


def test_one_tensor_per_parameter_of_its_shape_and_never_coarser_than_float32() -> None:
    params = [nn.Parameter(torch.ones(2, 3, dtype=d)) for d in (torch.float32, torch.bfloat16)]
    direction = gaussian_direction(params, radius=0.5, seed=1)
    assert [(d.shape, d.dtype, d.requires_grad) for d in direction] == [
        ((2, 3), torch.float32, False),
        ((2, 3), torch.float32, False),
    ]
    assert all(p.eq(1).all() for p in params)


def test_a_seed_is_a_direction() -> None:
    first = gaussian_direction(PARAMS, radius=0.05, seed=7)
    torch.manual_seed(99)
    assert_same_bits(gaussian_direction(PARAMS, radius=0.05, seed=7), first)
    other = gaussian_direction(PARAMS, radius=0.05, seed=8)
    assert not torch.equal(other[0], first[0])


def test_the_draw_has_a_generator_of_its_own() -> None:
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    gaussian_direction(PARAMS, radius=0.05, seed=7)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state


def test_entries_are_independent_standard_normals() -> None:
    """Over 24,018 entries: four moments, two quantiles, and no copy between tensors."""
    direction = gaussian_direction(PARAMS, radius=1.0, seed=3)
    entries = torch.cat([d.flatten() for d in direction]).double()
    count = len(entries)
    z = entries * count**0.5
    error = count**-0.5
    assert abs(z.mean()) < 4 * error
    assert abs(z.square().mean() - 1) < 1e-6
    assert abs(z.pow(3).mean()) < 4 * 15**0.5 * error
    assert abs(z.pow(4).mean() - 3) < 4 * 96**0.5 * error
    assert abs((z.abs() < 0.6745).double().mean() - 0.5) < 4 * 0.5 * error
    assert abs((z < -1.96).double().mean() - 0.025) < 4 * 0.16 * error
    first, second = direction[0].flatten(), direction[2].flatten()
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 4 * len(first) ** -0.5


def test_the_radius_is_shared_in_proportion_to_size() -> None:
    """One sphere over all parameters together, not one per tensor."""
    small, large = torch.zeros(100), torch.zeros(9_900)
    pieces = gaussian_direction([small, large], radius=1.0, seed=5)
    assert global_norm(pieces[:1]).item() == pytest.approx(0.1, rel=0.3)
    assert global_norm(pieces[1:]).item() == pytest.approx(0.995, rel=0.01)


def test_a_tied_parameter_is_covered_once() -> None:
    problem = transformer()
    direction = gaussian_direction(problem.params, radius=0.05, seed=1)
    assert len(direction) == len(problem.named)
    assert global_norm(direction).item() == pytest.approx(0.05, rel=1e-6)


def test_memory_layout_follows_the_parameter() -> None:
    param = torch.zeros(4, 3).t()
    (direction,) = gaussian_direction([param], radius=1.0, seed=1)
    assert direction.stride() == param.stride()


def test_seeds_are_splitmix64_of_run_and_step() -> None:
    """The published first outputs of splitmix64 from state 0, without their top bit."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [seed_for(run, 0) for run in (1, 2, 3)] == [p & (2**63 - 1) for p in published]
    assert seed_for(1, 1) == 0x110A2DEC89025CC1
    assert seed_for(42, 1000) == 0x171A7A87D86F66F7


def test_seeds_differ_between_steps_and_between_runs() -> None:
    seeds = {seed_for(run, step) for run in range(100) for step in range(500)}
    assert len(seeds) == 100 * 500
    assert seed_for(1, 2) != seed_for(2, 1)


@pytest.mark.parametrize(("run", "step"), [(0, 0), (-1, 5), (2**70, 3), (1, -1), (1, 2**65)])
def test_any_integers_give_a_seed_that_a_generator_takes(run: int, step: int) -> None:
    seed = seed_for(run, step)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)


def test_neighbouring_seeds_share_no_bits_in_particular() -> None:
    """On average half of the bits change from one step to the next."""
    changed = [(seed_for(1, s) ^ seed_for(1, s + 1)).bit_count() for s in range(1000)]
    assert sum(changed) / 1000 == pytest.approx(31.5, abs=0.5)
