"""How close each precision comes to single precision: the figures of docs/support.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.gradients import first_gradient
from tests.support.matrix import METHODS, PRECISION_BOUNDS
from tests.support.precision import MODES


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", PRECISION_BOUNDS)
def test_the_gradient_is_that_of_single_precision(
    translation: Path, device: torch.device, mode: str, method: str
) -> None:
    """From the same weights, as rounded, for three batches' worth of seeds."""
    # A radius at which the perturbation turns the gradient by more than any bound.
    rho = ("--sam-rho", "0.2")
    bound = PRECISION_BOUNDS[mode][METHODS.index(method)]
    if bound is None:
        pytest.skip("the weights of Eq. 5 are those of half precision; see docs/precision.md")
    for seed in ("1", "2", "3"):
        flags = ("--sam-method", method, "--seed", seed, *rho)
        begun, direction, norm = first_gradient(translation, *flags, *MODES[mode])
        _, expected, expected_norm = first_gradient(translation, *flags, start=begun)
        difference = (direction - expected).norm().item()
        plain = ("--sam-method", "none", "--seed", seed)
        _, unmoved, _ = first_gradient(translation, *plain, start=begun)
        turned = (unmoved - expected).norm().item()
        print(
            f"{device}, {mode}, {method}, seed {seed}: {difference:.4f} of {turned:.4f}, "
            f"norm {norm / expected_norm:.4f}"
        )
        # The perturbation turned the gradient by much more than precision does.
        assert method == "none" or difference < 0.5 * turned
        assert difference <= bound
        assert norm == pytest.approx(expected_norm, rel=bound)
