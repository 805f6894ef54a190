"""How close each precision comes to single precision: the figures of docs/support.md."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fairseq_plugin.matrix import METHODS, PRECISION_BOUNDS
from tests.fairseq_plugin.precision import MODES
from tests.support import fairseq_toys as toys
from tests.support.compare import assert_same_bits

Gradient = tuple[list[Tensor], Tensor, float]


def first_gradient(data: Path, *flags: str, start: list[Tensor] | None = None) -> Gradient:
    """Run one update of two micro-batches.

    Returns:
        The weights that it started from, in float32; the direction of the gradient that the
        inner optimizer gets, of norm one in float64; and the norm that fairseq logs.
    """
    trainer = toys.make_trainer(data, *toys.TRANSLATION, "--dropout", "0", *flags)
    params = list(trainer.get_model().parameters())
    for param, value in zip(params, start or params, strict=True):
        param.data.copy_(value)
    begun = [p.detach().float().clone() for p in params]
    found: list[Tensor] = []
    clip = trainer.clip_grad_norm

    def look(norm: float) -> Any:
        # fairseq 0.12.2 has parameters that training never uses.
        used = [p.grad for p in params if p.grad is not None]
        found.append(torch.cat([gradient.double().flatten() for gradient in used]))
        return clip(norm)

    trainer.clip_grad_norm = look
    (log,) = toys.updates(trainer, [toys.batches(trainer)[:2]])
    (gradient,) = found
    return begun, gradient / gradient.norm(), log["gnorm"]


# A radius at which the perturbation turns the gradient by more than any bound.
RADIUS = ("--sam-rho", "0.2")


@cache
def gradient_of(data: Path, device: torch.device, mode: str, method: str, seed: str) -> Gradient:
    return first_gradient(data, *RADIUS, "--sam-method", method, "--seed", seed, *MODES[mode])


@cache
def single(data: Path, device: torch.device, rounding: str, method: str, seed: str) -> Gradient:
    """Run in single precision from the weights that a mode with this rounding starts from."""
    start, _, _ = gradient_of(data, device, rounding, method, seed)
    return first_gradient(data, *RADIUS, "--sam-method", method, "--seed", seed, start=start)


def rounding_of(mode: str) -> str:
    return next(name for name in ("fp16", "bf16", "amp") if name in mode)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", PRECISION_BOUNDS)
def test_the_gradient_is_that_of_single_precision(
    translation: Path, device: torch.device, mode: str, method: str
) -> None:
    """From the same weights, as rounded, for three batches' worth of seeds."""
    bound = PRECISION_BOUNDS[mode][METHODS.index(method)]
    if bound is None:
        pytest.skip("the weights of Eq. 5 are those of half precision; see docs/precision.md")
    for seed in ("1", "2", "3"):
        start, direction, norm = gradient_of(translation, device, mode, method, seed)
        rounded = (translation, device, rounding_of(mode))
        begun, expected, expected_norm = single(*rounded, method, seed)
        _, unmoved, _ = single(*rounded, "none", seed)
        assert_same_bits(start, begun)
        difference = (direction - expected).norm().item()
        turned = (unmoved - expected).norm().item()
        print(
            f"{device}, {mode}, {method}, seed {seed}: {difference:.4f} of {turned:.4f}, "
            f"norm {norm / expected_norm:.4f}"
        )
        # The perturbation turned the gradient by much more than precision does.
        assert method == "none" or difference < 0.5 * turned
        assert difference <= bound
        assert norm == pytest.approx(expected_norm, rel=bound)
