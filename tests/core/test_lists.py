"""Operations on lists: what they give is that of a loop, at a fraction of the kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from deltasam_fairseq.benchmarks.counting import counted
from deltasam_fairseq.benchmarks.instruments import peak_bytes
from deltasam_fairseq.core.noise import gaussian_direction
from deltasam_fairseq.core.perturb import Borrowed
from deltasam_fairseq.core.vectors import global_norm, grouped
from deltasam_fairseq.core.weight_space import WeightSpace
from tests.support.compare import assert_same_bits, copies

CPU = torch.device("cpu")
KINDS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def mixed() -> list[Tensor]:
    """Make parameters of four dtypes, some without entries, some transposed."""
    shapes = [(3, 4), (5,), (), (2, 0)]
    params: list[Tensor] = [nn.Parameter(torch.randn(s).to(kind)) for kind in KINDS for s in shapes]
    params.append(nn.Parameter(torch.randn(4, 3).t()))
    return params


def steps_of(params: list[Tensor]) -> list[Tensor | None]:
    # Half precision takes steps of its own dtype and of float32; every fifth parameter stays.
    steps: list[Tensor | None] = []
    for n, p in enumerate(params):
        kind = torch.float32 if p.dtype.itemsize == 2 and n % 2 else p.dtype
        steps.append(None if n % 5 == 4 else torch.randn_like(p, dtype=kind))
    return steps


def moved_one_by_one(
    params: list[Tensor], steps: list[Tensor | None], scale: float
) -> list[Tensor]:
    expected = []
    for param, step in zip(params, steps, strict=True):
        w = param.detach().clone()
        if step is not None:
            wide = step.float() if w.dtype.itemsize == 2 else step
            w.copy_((wide * scale).add_(w))
        expected.append(w)
    return expected


@pytest.mark.parametrize("scale", [0.37, torch.tensor(0.37, dtype=torch.float64)])
def test_moves_are_those_of_a_loop_bit_for_bit(scale: float | Tensor) -> None:
    params = mixed()
    before, steps = copies(params), steps_of(params)
    expected = moved_one_by_one(params, steps, 0.37)
    borrowed = Borrowed(params, steps, scale)
    assert_same_bits([p.detach() for p in params], expected)
    borrowed.mirror()
    for param, there, start in zip(params, expected, before.values(), strict=True):
        kind = torch.float32 if param.dtype.itemsize == 2 else param.dtype
        other = (2 * start.to(kind) - there.to(kind)).to(param.dtype)
        torch.testing.assert_close(param.detach(), other, rtol=1e-6, atol=1e-6)
    borrowed.restore()
    assert_same_bits(params, before)


def test_what_rounding_left_is_that_of_a_loop() -> None:
    params = mixed()
    steps = steps_of(params)
    expected = moved_one_by_one(params, steps, 0.01)
    pairs = [
        ((e.double() - p.detach().double()).flatten(), 0.01 * s.double().flatten())
        for e, p, s in zip(expected, params, steps, strict=True)
        if s is not None
    ]
    moved, wanted = (torch.cat(side) for side in zip(*pairs, strict=True))
    borrowed = Borrowed(params, steps, 0.01, measure=True)
    assert borrowed.realised is not None
    share, cosine = borrowed.realised
    assert share == pytest.approx((moved.norm() / wanted.norm()).item(), rel=1e-4)
    assert cosine == pytest.approx((moved @ wanted / moved.norm() / wanted.norm()).item(), rel=1e-4)


def test_the_norm_is_that_of_one_long_vector() -> None:
    tensors = mixed()
    whole = torch.cat([t.detach().double().flatten() for t in tensors])
    assert global_norm(tensors).item() == pytest.approx(whole.norm().item(), rel=1e-12)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_stretch_of_many_parameters_is_that_of_each(adaptive: bool) -> None:
    params = [nn.Parameter(torch.randn(3)) for _ in range(6)]
    factors = {id(p): f for p, f in zip(params, [0.0, 1.0, 2.0] * 2, strict=True)}
    kinds = [id(p) for p in params[:3]] if adaptive else []
    gradients: list[Tensor | None] = [torch.randn(3) for _ in params]
    gradients[4] = None
    kept = [None if g is None else g.clone() for g in gradients]
    direction, norm = WeightSpace(params, factors=factors, adaptive=kinds).steepest(gradients)
    square = 0.0
    for param, gradient, step in zip(params, kept, direction, strict=True):
        size = param.detach().abs() + 0.01 if id(param) in kinds else 1.0
        stretch = factors[id(param)] * size
        if gradient is None or factors[id(param)] == 0:
            assert step is None
            continue
        assert step is not None
        torch.testing.assert_close(step, gradient * stretch**2)
        square += (gradient * stretch).square().sum().item()
    assert norm == pytest.approx(math.sqrt(square))


def works(params: Sequence[Tensor]) -> dict[str, Callable[[], object]]:
    borrowed = Borrowed(params, [torch.randn_like(p) for p in params])
    return {
        "move": lambda: Borrowed(params, [torch.zeros_like(params[0])] * len(params)),
        "mirror": borrowed.mirror,
        "restore": borrowed.restore,
        "norm": lambda: global_norm(params),
        "steepest": lambda: WeightSpace(params).steepest([p.detach() for p in params]),
        "draw": lambda: gaussian_direction(params, radius=1.0, seed=1),
    }


@pytest.mark.parametrize("name", ["move", "mirror", "restore", "norm", "steepest", "draw"])
def test_more_parameters_take_no_more_launches(name: str) -> None:
    launches = [
        counted(works([nn.Parameter(torch.randn(8)) for _ in range(count)])[name]).launches
        for count in (40, 400)
    ]
    # Groups of a quarter hold a tensor more or less.
    assert launches[1] <= launches[0] <= 25


@pytest.mark.parametrize("name", ["mirror", "restore", "norm", "draw"])
def test_nothing_of_these_waits(name: str) -> None:
    params = [nn.Parameter(torch.randn(8)) for _ in range(3)]
    assert counted(works(params)[name]).synchronizations == 0
    assert counted(works(params)["steepest"]).synchronizations == 1


def test_moving_takes_no_second_copy() -> None:
    params = [nn.Parameter(torch.randn(1000)) for _ in range(40)]
    steps = [torch.randn_like(p) for p in params]
    peak = peak_bytes(lambda: Borrowed(params, steps), CPU)
    assert peak <= 40 * 4000 // 4


def test_groups_are_alike_and_keep_what_belongs_together() -> None:
    params = mixed()
    numbers = [torch.tensor(float(n)) for n in range(len(params))]
    seen = []
    for group, own in grouped(params, numbers, cut=True):
        assert len({p.dtype for p in group}) == 1
        for param, number in zip(group, own, strict=True):
            assert param is params[int(number)]
            seen.append(int(number))
    assert sorted(seen) == list(range(len(params)))
    assert list(grouped([], [])) == []
