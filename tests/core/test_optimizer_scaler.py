"""``DeltaSAM`` with a GradScaler of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deltasam_fairseq.core import DeltaSAM
from tests.core.test_optimizer_batches import METHODS, every_method, parts
from tests.support.compare import assert_close, assert_same_bits, copies
from tests.support.problems import Problem, mlp

# The older one, of CUDA alone, is disabled where there is no GPU.
GradScaler: Any = getattr(torch.amp, "GradScaler", None)
pytestmark = pytest.mark.skipif(GradScaler is None, reason="torch.amp.GradScaler came with 2.3")


def scaler_of(scale: float = 2.0**16, **settings: Any) -> Any:
    return GradScaler("cpu", init_scale=scale, growth_interval=3, **settings)


def optimizer_of(problem: Problem, method: str, scaler: Any, **settings: Any) -> DeltaSAM:
    inner = torch.optim.Adam(problem.params, lr=0.01)
    more = {"rho": 0.2, "model": problem.model, **METHODS[method], **settings}
    return DeltaSAM(inner, scaler=scaler, **more)


@every_method
def test_without_an_overflow_it_is_the_step_without_a_scaler(method: str) -> None:
    """Powers of two change no bit. The scale grows once in three updates."""
    plain, scaled = mlp(sentences=7), mlp(sentences=7)
    scaler = scaler_of()
    one = optimizer_of(plain, method, None, max_grad_norm=0.3)
    other = optimizer_of(scaled, method, scaler, max_grad_norm=0.3)
    for update, growth in enumerate([(1, 2.0**16), (2, 2.0**16), (0, 2.0**17)]):
        for optimizer, problem in ((one, plain), (other, scaled)):
            optimizer.zero_grad()
            for param in problem.params:  # of another loss, which is added to
                param.grad = torch.full_like(param, 0.01)
            optimizer.step(parts(problem, [4, 3], update))
        assert one.report is not None and other.report is not None
        assert_close(other.report[:3], one.report[:3], rtol=1e-9)
        assert other.report.gradient_norm == pytest.approx(one.report.gradient_norm, rel=1e-9)
        assert (scaler._get_growth_tracker(), scaler.get_scale()) == growth
        assert not other.report.overflow
    assert one.steps == other.steps == 3
    assert_close(scaled.named, plain.named, rtol=1e-9)


def too_large(problem: Problem, where: str) -> Callable[..., Tensor]:
    """Return losses whose scaled gradient is infinite, or only where the weights are moved."""
    before, score = copies(problem.params), problem.score

    def large(model: Any, batch: Any) -> Tensor:
        spared = where == "descent" and all(
            torch.equal(p, b) for p, b in zip(problem.params, before.values(), strict=True)
        )
        return score(model, batch) * (1.0 if spared else 1e36)

    return large


@pytest.mark.parametrize(
    ("method", "where"),
    [
        # The engine moves no weights that a closure could look at; without one there is no ascent.
        *((m, w) for m in METHODS if m not in {"none", "batched"} for w in ("ascent", "descent")),
        ("none", "ascent"),
        ("batched", "ascent"),
    ],
)
def test_an_overflow_in_either_pass_skips_the_update_and_halves_the_scale_once(
    method: str, where: str
) -> None:
    problem = mlp(sentences=7, dtype=torch.float32)
    before, plain = copies(problem.named), problem.score
    scaler = scaler_of()
    optimizer = optimizer_of(problem, method, scaler)
    problem.score = too_large(problem, where)
    report = optimizer.step(parts(problem, [4, 3]))
    assert report.overflow and optimizer.report is not None and optimizer.report.overflow
    assert torch.isfinite(report.losses).all()
    assert_same_bits(problem.named, before)
    assert all(p.grad is None for p in problem.params)
    assert optimizer.steps == 0 and not optimizer.state
    assert (scaler.get_scale(), scaler._get_growth_tracker()) == (2.0**15, 0)
    problem.score = plain
    assert not optimizer.step(parts(problem, [4, 3])).overflow
    assert (scaler.get_scale(), scaler._get_growth_tracker()) == (2.0**15, 1)
    assert optimizer.steps == 1


def test_a_fused_inner_optimizer_skips_too() -> None:
    problem = mlp(sentences=7, dtype=torch.float32)
    before, plain = copies(problem.named), problem.score
    inner = torch.optim.Adam(problem.params, lr=0.01, fused=True)
    optimizer = DeltaSAM(inner, method="sam", scaler=scaler_of())
    problem.score = too_large(problem, "descent")
    assert optimizer.step(problem.losses()).overflow
    assert_same_bits(problem.named, before)
    problem.score = plain
    assert not optimizer.step(problem.losses()).overflow
    assert not torch.equal(problem.params[0], before[next(iter(before))])


def test_float16_autocast_trains() -> None:
    problem = mlp(sentences=7, dtype=torch.float32)

    def closure() -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return problem.losses()().float()

    for method in METHODS:
        optimizer = optimizer_of(problem, method, scaler_of())
        first = optimizer.step(closure).losses.mean()
        for _ in range(5):
            optimizer.zero_grad()
            report = optimizer.step(closure)
        assert report.losses.mean() < first


def test_a_scaler_that_is_disabled_is_none() -> None:
    plain, scaled = mlp(), mlp()
    optimizer_of(plain, "sam", None).step(plain.losses())
    optimizer_of(scaled, "sam", scaler_of(enabled=False)).step(scaled.losses())
    assert_same_bits(scaled.named, plain.named)


@every_method
def test_a_step_that_fails_leaves_gradients_as_they_were(method: str) -> None:
    problem = mlp()
    optimizer = optimizer_of(problem, method, scaler_of())
    problem.losses()().sum().backward()
    there = [p.grad for p in problem.params if p.grad is not None]
    before = copies(there)

    def failing() -> Tensor:
        raise MemoryError

    with pytest.raises(MemoryError):
        optimizer.step([problem.losses(), failing])
    assert_same_bits(there, before)
    assert all(p.grad is own for p, own in zip(problem.params, there, strict=True))
