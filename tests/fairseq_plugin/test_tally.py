"""The unit of the weights: half precision has no room for weights of any size."""

from __future__ import annotations

import pytest
import torch

from deltasam_fairseq.fairseq_plugin.sharpness.weighing import Tally


def test_a_larger_unit_brings_earlier_gradients_along() -> None:
    """Whatever order the batches come in, ``unit * grad`` is the weighted gradient."""
    param = torch.nn.Parameter(torch.zeros(2))
    tally = Tally()
    total = torch.zeros(2)
    for mean in (0.5, 4.0, 1.0, 8.0):
        tally.raise_to(mean, [param])
        batch = torch.tensor([1.0, -2.0])
        share = batch * (mean / tally.scale)
        param.grad = share if param.grad is None else param.grad + share
        total += mean * batch
    assert tally.unit == 8.0
    assert param.grad is not None
    torch.testing.assert_close(param.grad * tally.scale, total)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_weights_that_are_no_measure_change_nothing(value: float) -> None:
    tally = Tally()
    tally.raise_to(value, [])
    assert tally.unit is None
    assert tally.scale == 1.0
