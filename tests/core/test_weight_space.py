"""The shape of the neighbourhood: factors, adaptive weights, masters, against the slow twin."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deltasam_fairseq.core import DeltaSAM, reference
from deltasam_fairseq.core.noise import seed_for
from deltasam_fairseq.core.weight_space import ADAPTIVE_OFFSET, WeightSpace
from tests.support.compare import assert_close, assert_same_bits, copies
from tests.support.problems import Problem, mlp


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]


def stretch_of(params: Sequence[Tensor], factors: Sequence[float], adaptive: bool) -> list[Tensor]:
    return [
        f * ((p.detach().abs() + ADAPTIVE_OFFSET) if adaptive else torch.ones_like(p))
        for p, f in zip(params, factors, strict=True)
    ]


def test_a_ball_takes_the_gradients_as_they_are() -> None:
    params = parameters((2, 3), (4,))
    gradients = [torch.randn_like(p) for p in params]
    direction, norm = WeightSpace(params).steepest(gradients)
    assert all(d is g for d, g in zip(direction, gradients, strict=True))
    assert norm == pytest.approx(torch.cat([g.flatten() for g in gradients]).norm().item())


@given(
    factors=st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=3, max_size=3),
    adaptive=st.booleans(),
)
def test_the_steepest_way_is_the_best_in_the_neighbourhood(
    factors: list[float], adaptive: bool
) -> None:
    params = parameters((2, 3), (4,), ())
    gradients = [torch.randn_like(p) for p in params]
    space = WeightSpace(
        params,
        factors={id(p): f for p, f in zip(params, factors, strict=True)},
        adaptive=map(id, params) if adaptive else (),
    )
    stretch = stretch_of(params, factors, adaptive)
    direction, norm = space.steepest([g.clone() for g in gradients])
    if not any(factors):
        assert norm == 0
        assert direction == [None] * 3
        return
    eps = [
        torch.zeros_like(p) if d is None else d / norm
        for p, d in zip(params, direction, strict=True)
    ]
    # On the border: the norm of T^-1 eps is one.
    units = [e[t > 0] / t[t > 0] for e, t in zip(eps, stretch, strict=True)]
    assert torch.cat([u.flatten() for u in units]).norm().item() == pytest.approx(1.0)
    gain = sum((g * e).sum().item() for g, e in zip(gradients, eps, strict=True))
    assert gain == pytest.approx(norm)
    for _ in range(5):  # nothing else on the border gains more
        noise = [torch.randn_like(p) * (t > 0) for p, t in zip(params, stretch, strict=True)]
        length = torch.cat([n.flatten() for n in noise]).norm()
        other = sum(
            (g * t * n / length).sum().item()
            for g, t, n in zip(gradients, stretch, noise, strict=True)
        )
        assert other <= gain + 1e-12


def test_random_directions_have_the_neighbourhoods_shape() -> None:
    params = parameters((50, 40), (2000,))
    space = WeightSpace(params, factors={id(params[0]): 3.0})
    large, small = space.gaussian(radius=0.1, seed=1)
    assert large is not None
    assert small is not None
    assert (large / 3).square().sum() + small.square().sum() == pytest.approx(0.01)
    assert large.norm() / small.norm() == pytest.approx(3.0, rel=0.1)
    fixed = WeightSpace(params, factors={id(params[0]): 0.0}).gaussian(radius=0.1, seed=1)
    assert fixed[0] is None
    assert fixed[1] is not None
    assert fixed[1].norm() == pytest.approx(0.1)


def test_half_precision_weights_move_with_their_masters() -> None:
    """Each step is below the spacing of the weights, yet masters carry it."""
    master = torch.linspace(1.0, 1.01, 4096)
    param = nn.Parameter(master.half())
    before = copies([param])
    step = torch.full_like(master, 1e-4)  # the spacing of fp16 at 1 is 1e-3
    space = WeightSpace([param], masters=[master])
    borrowed = space.moved([step.clone()], measure=True)
    assert torch.equal(param.detach(), (master + step).half())
    moved = (param.detach().float() - before["0"].float()).mean().item()
    assert moved == pytest.approx(1e-4, rel=0.05), "right on average"
    assert borrowed.realised is not None
    assert borrowed.realised.cosine == pytest.approx(math.sqrt(1e-4 / 2**-10), rel=0.05)
    borrowed.restore()
    assert_same_bits([param], before)
    # Without masters nothing of it is left.
    borrowed = WeightSpace([param]).moved([step.clone()], measure=True)
    assert borrowed.realised == (0.0, 0.0)
    borrowed.restore()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_mirror_of_half_precision_is_as_far_on_the_other_side(dtype: torch.dtype) -> None:
    master = torch.randn(500)
    param = nn.Parameter(master.to(dtype))
    start = param.detach().float()
    with WeightSpace([param], masters=[master]).perturbed([0.05 * torch.randn(500)]) as side:
        there = param.detach().float() - start
        side.mirror()
        back = start - param.detach().float()
    coarse = 2.0 ** (-7 if dtype == torch.bfloat16 else -10)
    assert (there - back).abs().max() <= coarse * 4
    assert (there == back).float().mean() > 0.9


def test_float32_weights_realise_what_was_asked_for() -> None:
    params = parameters((100, 100), dtype=torch.float32)
    borrowed = WeightSpace(params).moved([1e-3 * torch.randn(100, 100)], measure=True)
    assert borrowed.realised == pytest.approx((1.0, 1.0), abs=1e-4)
    borrowed.restore()
    assert WeightSpace(params).moved([None], measure=True).realised is None


def test_a_part_of_a_space_keeps_its_shape() -> None:
    params = parameters((3,), (4,), (5,), dtype=torch.float16)
    masters = [p.detach().float() for p in params]
    factors = {id(params[0]): 0.0, id(params[1]): 2.0}
    space = WeightSpace(params, masters=masters, factors=factors, adaptive=[id(params[1])])
    part = space.only(params[:2])
    assert [id(p) for p in part] == [id(params[1])]
    assert part.masters is not None
    assert part.masters[0] is masters[1]
    full = space.only(params, masters=True)
    assert [id(p) for p in full] == [id(masters[1]), id(masters[2])]
    assert full.masters is None
    for one, two in zip(
        full.steepest([torch.ones(4), torch.ones(5)])[0],
        [4 * (masters[1].abs() + ADAPTIVE_OFFSET) ** 2, torch.ones(5)],
        strict=True,
    ):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("method", ["sam", "delta_sam", "per_instance"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_optimizer_equals_the_slow_twin(method: str, adaptive: bool) -> None:
    problem = mlp()
    factors = [1.0, 0.0, 0.5, 2.0]
    groups = [
        {"params": [p], "rho_factor": f} for p, f in zip(problem.params, factors, strict=True)
    ]
    optimizer = DeltaSAM(
        torch.optim.SGD(groups, lr=1.0),
        method=method,
        engine="loop",
        rho=0.3,
        seed=4,
        adaptive=adaptive,
    )
    before = [p.detach().clone() for p in problem.params]
    expected = twin(problem, method, stretch_of(before, factors, adaptive), factors)
    optimizer.step(problem.losses())
    after = [b - g for b, g in zip(before, expected, strict=True)]
    assert_close(problem.params, after, rtol=1e-9, atol=1e-12)


def twin(
    problem: Problem, method: str, stretch: list[Tensor], factors: list[float]
) -> list[Tensor]:
    at = [p.detach().clone() for p in problem.params]
    losses = problem.losses_at()
    if method == "sam":
        return reference.sam_gradient(losses, at, rho=0.3, stretch=stretch)
    if method == "per_instance":
        return reference.per_instance_gradient(losses, at, rho=0.3, stretch=stretch)
    moving = [p for p, f in zip(problem.params, factors, strict=True) if f]
    drawn = iter(WeightSpace(moving).gaussian(radius=0.3, seed=seed_for(4, 0)))
    noise = [
        t * next(drawn) if f else torch.zeros_like(t)  # type: ignore[operator]
        for t, f in zip(stretch, factors, strict=True)
    ]
    return reference.delta_sam_gradient(losses, at, noise, rho=0.3, eta=1e-4, stretch=stretch)


def test_adaptive_perturbations_follow_the_scale_of_the_weights() -> None:
    """Kwon et al.: a layer ten times larger moves about ten times further."""
    params = [nn.Parameter(scale * torch.randn(50_000)) for scale in (10.0, 1.0)]
    space = WeightSpace(params, adaptive=map(id, params))
    direction, norm = space.steepest([torch.randn(50_000) * s for s in (0.1, 1.0)])
    assert direction[0] is not None
    assert direction[1] is not None
    assert (direction[0].norm() / direction[1].norm()).item() == pytest.approx(10.0, rel=0.1)
    assert norm > 0
