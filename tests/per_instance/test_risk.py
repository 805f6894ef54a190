"""Adversarial losses of whole batches, against the twin that moves copies of the weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deltasam_fairseq.core import per_instance_step
from deltasam_fairseq.per_instance import Engine, Unsupported
from deltasam_fairseq.per_instance.risk import adversarial_losses
from tests.per_instance.toys import Tagger, problem
from tests.support.compare import assert_close, assert_same_bits, copies
from tests.support.problems import Problem, mlp, transformer

RHO = 0.2


def slow_twin(toy: Problem, step: int = 0, rho: float = RHO) -> Tensor:
    """Move copies of the weights along each sentence's own gradient, and score it there."""
    moved = []
    for sentence in range(len(toy.losses_at(step)(toy.params))):
        at = [param.detach().clone().requires_grad_() for param in toy.params]
        loss = toy.losses_at(step)(at)[sentence]
        gradient = torch.autograd.grad(loss, at, allow_unused=True)
        parts = [torch.zeros_like(w) if g is None else g for w, g in zip(at, gradient, strict=True)]
        norm = torch.stack([(part**2).sum() for part in parts]).sum().sqrt()
        scale = rho / norm if norm > 0 else 0.0
        there = [w.detach() + scale * part for w, part in zip(at, parts, strict=True)]
        moved.append(toy.losses_at(step)(there)[sentence].detach())
    return torch.stack(moved)


@settings(max_examples=8)
@given(sentences=st.integers(1, 4), length=st.integers(1, 5), rho=st.sampled_from([0.0, 0.01, 1.0]))
def test_it_is_its_slow_twin(sentences: int, length: int, rho: float) -> None:
    # With three sentences or more the last one is padding alone: no gradient.
    toy = problem(Tagger(nn.LayerNorm(4)), sentences=sentences, length=length)
    engine = Engine(toy.model)
    for step in range(2):
        found = adversarial_losses(engine, toy.losses(step), rho=rho)
        assert_close([found.losses], [toy.losses(step)()], rtol=1e-12, atol=1e-12)
        assert_close([found.moved], [slow_twin(toy, step, rho)], rtol=1e-10, atol=1e-10)
        if sentences > 2:
            assert found.norms[-1] == 0
            assert found.moved[-1] == found.losses[-1]


@pytest.mark.parametrize("make", [mlp, transformer])
def test_dropout_is_that_of_the_step_and_nothing_is_left_behind(
    make: Callable[..., Problem],
) -> None:
    toy = make(dropout=0.4)
    before = copies(toy.params)
    torch.manual_seed(3)
    expected = per_instance_step(toy.params, toy.losses(), rho=RHO)
    after = torch.get_rng_state()
    toy.model.zero_grad()
    torch.manual_seed(3)
    with torch.no_grad():  # a caller that scores may well say so
        found = adversarial_losses(Engine(toy.model), toy.losses(), rho=RHO)
    assert_close([found.losses], [expected.losses], rtol=1e-12)
    assert_close([found.moved], [expected.perturbed_losses], rtol=1e-10)
    assert torch.equal(after, torch.get_rng_state())
    assert all(param.grad is None for param in toy.params)
    assert_same_bits(toy.params, before)


def test_the_second_pass_keeps_nothing_for_a_backward_pass() -> None:
    toy, seen = transformer(), []

    def losses() -> Tensor:
        seen.append(toy.losses()())
        return seen[-1]

    found = adversarial_losses(Engine(toy.model), losses, rho=RHO)
    assert not found.moved.requires_grad
    with pytest.raises(RuntimeError, match="keeps nothing"):
        seen[1].sum().backward()


def test_a_loss_that_is_lost_at_the_moved_weights_is_reported_as_it_is() -> None:
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    x = torch.tensor([[1.0], [-1.0]])
    found = adversarial_losses(Engine(layer), lambda: -layer(x).log().nansum(1), rho=2.0)
    assert found.losses[0] == 0
    assert found.moved[0] == 0  # log(-1) is no number and counts nothing
    with pytest.raises(Unsupported):
        adversarial_losses(Engine(layer), lambda: layer.weight.norm().view(1), rho=1.0)
