"""Weights are borrowed: moved in place, and put back bit for bit whatever happens."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deltasam_fairseq.core.perturb import Borrowed, perturbed
from tests.support.compare import assert_close, assert_same_bits, copies
from tests.support.problems import Broken


def weights(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    shapes = [(4, 3), (5,), (), (2, 0)]
    return [nn.Parameter(torch.randn(s).to(dtype)) for s in shapes]


def directions(params: list[Tensor], size: float = 0.1) -> list[Tensor]:
    return [size * torch.randn_like(p) for p in params]


def test_the_block_runs_at_the_moved_weights_and_the_saved_ones_return() -> None:
    params = weights()
    before, direction = copies(params), directions(params)
    moved = [p.detach() + 2.0 * d for p, d in zip(params, direction, strict=True)]
    with perturbed(params, direction, 2.0):
        assert_close(params, moved, rtol=1e-6, atol=1e-6)
    assert_same_bits(params, before)


def test_the_scale_may_be_a_tensor() -> None:
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    with perturbed([w], [torch.tensor([1.0, 0.0])], torch.tensor(0.5, dtype=torch.float64)):
        assert w.tolist() == [1.5, 2.0]
        assert w.dtype == torch.float32


def test_the_mirror_is_the_other_side() -> None:
    params = weights(torch.float64)
    before, direction = copies(params), directions(params)
    other = [p.detach() - d for p, d in zip(params, direction, strict=True)]
    with perturbed(params, direction) as side:
        side.mirror()
        assert_close(params, other, rtol=1e-14, atol=1e-15)
        side.mirror()
        assert_close(params, [2 * before[str(i)] - o for i, o in enumerate(other)], rtol=1e-14)
    assert_same_bits(params, before)


def test_the_mirror_is_as_far_as_the_weights_went() -> None:
    """Half-precision weights move by what rounding leaves; both sides by the same."""
    param = nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
    with perturbed([param], [0.02 * torch.randn(1000).bfloat16()]) as side:
        there = param.detach().double() - 1
        side.mirror()
        back = 1 - param.detach().double()
    assert there.abs().max() > 0
    # bfloat16 is twice as fine below 1 as above: exact unless the mirror crosses it upwards.
    assert torch.equal(back[there > 0], there[there > 0])
    assert_close([back], [there], rtol=0, atol=2**-8)


def test_storage_does_not_move() -> None:
    params = weights()
    places = [p.data_ptr() for p in params]
    with perturbed(params, directions(params)) as side:
        assert [p.data_ptr() for p in params] == places
        side.mirror()
        assert [p.data_ptr() for p in params] == places
    assert [p.data_ptr() for p in params] == places


def test_a_flat_buffer_stays_in_sync_with_the_parameters_that_are_its_views() -> None:
    """Fairseq's flat fp32 masters, fused optimizers and DDP buckets look like this."""
    flat = torch.randn(10)
    before = flat.clone()
    params = [nn.Parameter(flat[:6].view(2, 3)), nn.Parameter(flat[6:])]
    with perturbed(params, [torch.ones(2, 3), -torch.ones(4)]) as side:
        assert torch.equal(flat, torch.cat([before[:6] + 1, before[6:] - 1]))
        side.mirror()
        assert_close([flat], [torch.cat([before[:6] - 1, before[6:] + 1])], rtol=1e-6, atol=1e-6)
    assert_same_bits([flat], [before])


def test_an_exception_inside_puts_the_weights_back_and_passes_through() -> None:
    params = weights()
    before = copies(params)
    with pytest.raises(Broken), perturbed(params, directions(params)) as side:
        side.mirror()
        raise Broken
    assert_same_bits(params, before)


def test_an_exception_halfway_through_moving_puts_back_what_was_moved() -> None:
    params = weights()
    before = copies(params)
    direction = directions(params)
    # The same memory everywhere: reading is fine, writing to it raises.
    direction[1] = torch.ones(1).expand(5)
    with pytest.raises(RuntimeError, match="single memory location"):
        Borrowed(params, direction)
    assert_same_bits(params, before)


def test_what_is_not_a_number_does_not_stick() -> None:
    """Subtracting an infinite perturbation again would leave nan."""
    params = weights()
    before = copies(params)
    with perturbed(params, [torch.full_like(p, math.inf) for p in params]) as side:
        side.mirror()
        assert not torch.isfinite(params[0]).any()
    assert_same_bits(params, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_hundred_perturbations_drift_by_nothing(dtype: torch.dtype) -> None:
    """Subtracting instead drifts by about the radius in bfloat16 after a thousand."""
    params = weights(dtype)
    params[0].data[0, 0] = -0.0
    before = copies(params)
    for _ in range(100):
        with perturbed(params, directions(params, 0.01)) as side:
            side.mirror()
    assert_same_bits(params, before)


def test_a_direction_of_none_leaves_its_parameter_alone() -> None:
    params = weights()
    before = copies(params)
    with perturbed(params, [None, torch.ones(5), None, None]) as side:
        side.mirror()
        assert_same_bits([params[0], params[2]], [before["0"], before["2"]])
        assert_close([params[1]], [before["1"] - 1], rtol=1e-5, atol=1e-6)


def test_moving_costs_one_copy_which_lies_in_the_direction() -> None:
    params = weights()
    before, direction = copies(params), directions(params)
    places = [d.data_ptr() for d in direction]
    with perturbed(params, direction):
        assert_same_bits(direction, before)
        assert [d.data_ptr() for d in direction] == places


def test_giving_back_lets_go_of_the_copy_and_is_done_once() -> None:
    params = weights()
    borrowed = Borrowed(params, directions(params))
    borrowed.restore()
    with torch.no_grad():
        params[0].zero_()
    borrowed.restore()
    assert params[0].eq(0).all()


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad])
def test_it_works_with_and_without_grad_mode_and_records_nothing(context: Callable) -> None:
    params = weights()
    with context(), perturbed(params, directions(params)) as side:
        side.mirror()
    assert all(p.is_leaf and p.requires_grad and p.grad_fn is None for p in params)


def test_gradients_inside_are_those_of_the_moved_weights() -> None:
    w = nn.Parameter(torch.tensor([3.0]))
    with perturbed([w], [torch.tensor([1.0])]):
        w.square().sum().backward()
    assert w.grad is not None and w.grad.item() == 8.0


def test_a_backward_pass_across_the_border_is_an_error_not_a_wrong_gradient() -> None:
    w = nn.Parameter(torch.tensor([3.0]))
    loss = w.square().sum()
    with perturbed([w], [torch.tensor([1.0])]), pytest.raises(RuntimeError, match="modified"):
        loss.backward()


def test_nothing_to_move() -> None:
    with perturbed([], []) as side:
        side.mirror()


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        ([torch.zeros(2)], "2 parameters but 1 direction tensors"),
        ([torch.zeros(2), torch.zeros(2)], r"direction 1 is \(2,\) .* its parameter \(3,\)"),
        (
            [torch.zeros(2), torch.zeros(3).double()],
            "direction 1 is .* torch.float64 on cpu, its parameter .* torch.float32 on cpu",
        ),
        ([None, torch.zeros(3, device="meta")], "direction 1 is .* on meta, its .* on cpu"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_moves(
    direction: list[Tensor], message: str
) -> None:
    params = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    with pytest.raises(ValueError, match=message):
        Borrowed(params, direction)
    assert all(p.eq(1).all() for p in params)
