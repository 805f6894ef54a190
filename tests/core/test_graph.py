"""Which parameters a loss reaches, and gradients that are kept out of the way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deltasam_fairseq.core.graph import differentiate, gradients_aside, reached, take_gradients
from tests.support.compare import assert_same_bits
from tests.support.problems import Broken, mlp, transformer


def test_reached_lists_what_receives_a_gradient_in_the_order_given() -> None:
    used, unused, also = (nn.Parameter(torch.ones(2)) for _ in range(3))

    def loss() -> torch.Tensor:
        return (used * also.exp()).sum()

    found = reached(loss(), [also, unused, used])
    assert [id(p) for p in found] == [id(also), id(used)]
    assert [id(p) for p in reached(loss(), [used])] == [id(used)]


@pytest.mark.parametrize("make", [mlp, transformer])
def test_reached_agrees_with_a_backward_pass(make) -> None:
    problem = make()
    found = reached(problem.losses()().sum(), problem.params)
    problem.losses()().sum().backward()
    assert [id(p) for p in found] == [id(p) for p in problem.params if p.grad is not None]
    assert len(found) == len(problem.params)


def test_reached_leaves_gradients_as_they_are() -> None:
    problem = mlp()
    problem.params[0].grad = kept = torch.ones_like(problem.params[0])
    reached(problem.losses()().sum(), problem.params)
    assert problem.params[0].grad is kept
    assert torch.equal(kept, torch.ones_like(kept))
    assert all(p.grad is None for p in problem.params[1:])


def test_what_is_frozen_or_detached_is_not_reached() -> None:
    frozen = torch.ones(2)
    detached, trained = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    loss = (frozen * trained + detached.detach()).sum()
    assert [id(p) for p in reached(loss, [frozen, detached, trained])] == [id(trained)]


def test_a_loss_without_a_graph_reaches_nothing() -> None:
    assert reached(torch.ones(()), [nn.Parameter(torch.ones(2))]) == []


def test_a_deep_graph_with_many_paths_is_walked_in_linear_time() -> None:
    """2**2000 paths, 2000 nodes deep: neither exponential nor recursive."""
    w = nn.Parameter(torch.ones(()))
    value = w * 1.0
    for _ in range(2000):
        value = value + value
    assert len(reached(value, [w])) == 1


def test_differentiate_gives_zeros_where_there_is_no_dependence() -> None:
    w, other = nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.ones(2, 2))
    loss = w.square().sum()
    gradients = differentiate(loss, [w, other])
    assert_same_bits(gradients, [torch.tensor([6.0]), torch.zeros(2, 2)])
    assert w.grad is None
    assert_same_bits(differentiate(loss, [w, other]), gradients)  # the graph is kept


def test_differentiate_twice() -> None:
    w = nn.Parameter(torch.tensor([3.0]))
    (once,) = differentiate(w.pow(3).sum(), [w], create_graph=True)
    (twice,) = differentiate(once.sum(), [w])
    assert (once.item(), twice.item()) == (27.0, 18.0)
    assert not differentiate(w.square().sum(), [w])[0].requires_grad


def test_gradients_aside_come_back_as_the_same_tensors() -> None:
    problem = mlp()
    problem.losses()().sum().backward()
    problem.params[0].grad = None
    kept = [p.grad for p in problem.params]
    values = [g.clone() for g in kept if g is not None]
    with gradients_aside(problem.params):
        assert all(p.grad is None for p in problem.params)
        problem.losses(1)().sum().backward()
    assert all(p.grad is k for p, k in zip(problem.params, kept, strict=True))
    assert_same_bits([g for g in kept if g is not None], values)


def test_gradients_aside_come_back_after_an_exception() -> None:
    w = nn.Parameter(torch.ones(2))
    w.grad = torch.full((2,), 7.0)
    with pytest.raises(Broken), gradients_aside([w]):
        w.sum().backward()
        raise Broken
    assert w.grad.tolist() == [7.0, 7.0]


def test_take_gradients_leaves_none() -> None:
    w, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    w.sum().backward()
    gradient = w.grad
    taken = take_gradients([w, unused])
    assert taken[0] is gradient and taken[1] is None
    assert w.grad is None and unused.grad is None


def test_a_sparse_gradient_is_refused_with_the_way_out() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="need dense gradients; .* sparse=False"):
        take_gradients(list(embedding.parameters()))
