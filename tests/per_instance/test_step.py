"""The batched step as a step: what it reports, restores and falls back to."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from deltasam_fairseq.core import grouped_step, per_instance_step, reference
from deltasam_fairseq.core.groups import dealt
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.per_instance import (
    Ascent,
    Engine,
    batched_per_instance_step,
    per_sentence_gradient_norms,
)
from tests.per_instance.toys import Tagger, problem
from tests.support.compare import assert_close, assert_same_bits, copies
from tests.support.problems import Problem, mlp, transformer

RHO = 0.2


def gradients(toy: Problem) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in toy.params]


def compared(
    make: Callable[[], Problem],
    losses: Callable[[Problem], Callable[[], Tensor]] = lambda toy: toy.losses(),
    *,
    space: Callable[[Problem], WeightSpace] = lambda toy: WeightSpace(toy.params),
    groups: int = 0,
) -> None:
    """Run both steps on equal problems and compare all that they leave behind."""
    loop, batched = make(), make()
    torch.manual_seed(5)
    if groups:
        expected = grouped_step(space(loop), losses(loop), groups, rho=RHO, seed=7)
    else:
        expected = per_instance_step(space(loop), losses(loop), rho=RHO)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    engine = Engine(batched.model, space(batched))

    def dealing(found: Tensor) -> list[list[int]]:
        return [rows for (rows,) in dealt([range(len(found))], groups, seed=7)]

    report = batched_per_instance_step(
        engine, losses(batched), rho=RHO, groups=dealing if groups else None
    )
    assert torch.equal(after, torch.get_rng_state())
    assert_close(gradients(batched), gradients(loop), rtol=1e-10, atol=1e-10)
    assert_close([report.losses], [expected.losses], rtol=1e-12)
    assert_close([report.perturbed_losses], [expected.perturbed_losses], rtol=1e-9)
    assert report.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-10)
    assert report.fallbacks == expected.fallbacks
    assert torch.equal(report.weights, expected.weights)


@pytest.mark.parametrize("make", [mlp, transformer])
def test_reports_what_the_loop_reports(make: Callable[[], Problem]) -> None:
    compared(make)


@pytest.mark.parametrize("make", [mlp, transformer])
def test_the_same_dropout_in_both_passes_and_in_the_loop(make: Callable[..., Problem]) -> None:
    compared(lambda: make(dropout=0.4))


@pytest.mark.parametrize("make", [mlp, transformer])
@pytest.mark.parametrize("groups", [1, 2, 99])
def test_groups_are_those_of_the_loop(make: Callable[..., Problem], groups: int) -> None:
    compared(lambda: make(dropout=0.4), groups=groups)


def test_time_first_dropout_is_drawn_in_the_same_order() -> None:
    def make() -> Problem:
        middle = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.4), nn.LayerNorm(4), nn.Dropout(0.4))
        return problem(Tagger(middle, time_first=True), sentences=4, length=3)

    compared(make)


def test_a_sentence_without_gradient_is_left_alone() -> None:
    mask = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    for groups in (0, 2):
        compared(transformer, lambda toy: lambda: toy.losses()() * mask, groups=groups)


def test_a_sentence_whose_gradient_is_not_finite() -> None:
    mask = torch.tensor([1.0, torch.inf, 1.0], dtype=torch.float64)
    toy = transformer()
    report = batched_per_instance_step(Engine(toy.model), lambda: toy.losses()() * mask, rho=RHO)
    assert report.fallbacks == 1
    assert torch.isfinite(report.perturbed_losses).tolist() == [True, False, True]
    others = transformer()
    with_others = torch.tensor([True, False, True])
    norms = per_sentence_gradient_norms(others.model, others.losses())
    assert torch.isfinite(norms[with_others]).all()


def test_a_group_with_a_sentence_that_is_lost_is_no_overflow() -> None:
    mask = torch.tensor([1.0, torch.inf, 1.0], dtype=torch.float64)
    toy = transformer()
    engine, groups = Engine(toy.model), [[1, 0], [2]]

    def ascend(mask: Tensor | float, **given: float) -> Ascent:
        return engine.ascend(
            lambda: toy.losses()() * mask, rho=RHO, groups=lambda losses: groups, **given
        )

    lost = ascend(mask)
    assert lost.usable.tolist() == [False, True]
    assert not lost.overflows
    assert ascend(1.0, loss_scale=1e308).overflows
    fine = ascend(1.0)
    assert not fine.overflows and fine.usable.all()
    fine.exclude(torch.tensor([True, False, False]))
    assert fine.usable.tolist() == [False, True]


@pytest.mark.parametrize("groups", [[[0, 1]], [[0, 1], [1, 2]], [[0, 1, 2, 3]]])
def test_groups_have_each_sentence_once(groups: list[list[int]]) -> None:
    toy = transformer()
    with pytest.raises(ValueError, match="each of 3 sentences once"):
        Engine(toy.model).ascend(toy.losses(), rho=RHO, groups=lambda losses: groups)


def test_losses_that_are_infinite_at_the_perturbed_weights_only() -> None:
    bound = mlp().losses()().detach()

    def losses(toy: Problem) -> Callable[[], Tensor]:
        def capped() -> Tensor:
            found = toy.losses()()
            too_much = torch.tensor([True, False, False, True]) & (found > bound + 1e-9)
            return found.masked_fill(too_much, torch.inf)

        return capped

    compared(mlp, losses)
    compared(mlp, losses, groups=2)


def test_factors_of_parameters() -> None:
    def space(toy: Problem) -> WeightSpace:
        named = toy.named
        stretched = {"output.weight": 2.0, "feed_forward.0.weight": 0.5, "mixed.bias": 0.0}
        tied = {"embedding.weight": 2.0} | stretched
        return WeightSpace(
            toy.params, factors={id(named[n]): f for n, f in tied.items() if n in named}
        )

    for groups in (0, 2):
        compared(transformer, space=space, groups=groups)


def test_gradients_are_added_and_weights_untouched() -> None:
    toy = transformer()
    before, storage = copies(toy.named), [p.data_ptr() for p in toy.params]
    engine = Engine(toy.model)
    batched_per_instance_step(engine, toy.losses(), rho=RHO)
    once = [g.clone() for g in gradients(toy)]
    batched_per_instance_step(engine, toy.losses(), rho=RHO)
    assert_close(gradients(toy), [2 * g for g in once], rtol=1e-12, atol=1e-14)
    assert_same_bits(toy.named, before)
    assert storage == [p.data_ptr() for p in toy.params]
    assert all(p.requires_grad for p in toy.params)


def test_no_radius_is_the_plain_gradient() -> None:
    toy = transformer()
    report = batched_per_instance_step(Engine(toy.model), toy.losses(), rho=0.0, reduction="sum")
    expected = reference.plain_gradient(toy.losses_at(), toy.params)
    assert_close(gradients(toy), [3 * g for g in expected], rtol=1e-10, atol=1e-12)
    assert report.sharpness == 0


def test_no_sentences() -> None:
    toy = problem(Tagger(nn.Identity()), sentences=0, length=3)
    report = batched_per_instance_step(Engine(toy.model), toy.losses(), rho=RHO)
    assert report.losses.shape == (0,) and report.gradient_norm == 0
    assert not any(g.any() for g in gradients(toy))


class Token:
    """Something that lives as long as the graph that holds it."""


class Holding(torch.autograd.Function):
    """The identity, with a token in the graph."""

    @staticmethod
    def forward(ctx, losses, token):
        ctx.token = token
        return losses.clone()

    @staticmethod
    def backward(ctx, delta):
        return delta, None


def test_the_first_graph_is_gone_before_the_second_pass() -> None:
    toy = transformer()
    tokens: list[weakref.ref[Token]] = []

    def losses() -> Tensor:
        assert all(token() is None for token in tokens)
        token = Token()
        tokens.append(weakref.ref(token))
        return Holding.apply(toy.losses()(), token)

    batched_per_instance_step(Engine(toy.model), losses, rho=RHO)
    assert len(tokens) == 2


@pytest.mark.parametrize("make", [mlp, transformer])
def test_norms_are_those_of_one_sentence_after_the_other(make: Callable[[], Problem]) -> None:
    toy = make()
    norms = per_sentence_gradient_norms(toy.model, toy.losses())
    expected = []
    for index in range(len(norms)):

        def loss(weights: Sequence[Tensor], index: int = index) -> Tensor:
            return toy.losses_at()(weights)[index]

        grads = reference.gradient(loss, toy.params)
        expected.append(torch.cat([g.flatten() for g in grads]).norm())
    assert_close([norms], [torch.stack(expected)], rtol=1e-10)
    scaled = per_sentence_gradient_norms(toy.model, toy.losses(), loss_scale=1024.0)
    assert_close([scaled], [norms], rtol=1e-10)
    assert all(p.grad is None for p in toy.params)


def test_norms_do_not_need_the_caller_to_keep_a_graph() -> None:
    toy = transformer()
    with torch.no_grad():
        there = per_sentence_gradient_norms(toy.model, toy.losses())
    assert there.min() > 0
    assert torch.equal(there, per_sentence_gradient_norms(toy.model, toy.losses()))


def test_norms_of_some_parameters() -> None:
    toy = transformer()
    some = [toy.named["mixed.weight"], toy.named["mixed.bias"]]
    norms = per_sentence_gradient_norms(toy.model, toy.losses(), some)
    first = torch.autograd.grad(toy.losses()()[0], some)
    assert float(norms[0]) == pytest.approx(float(torch.cat([g.flatten() for g in first]).norm()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_norms_are_near_the_true_ones(dtype: torch.dtype) -> None:
    """Under autocast, and with a model whose weights are of half precision."""
    toy = transformer(dtype=torch.float32)
    expected = per_sentence_gradient_norms(toy.model, toy.losses())
    half = transformer(dtype=torch.float32)
    half.model.to(dtype)
    engine = Engine(half.model)

    def losses() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            return half.score(half.model, half.batches[0]).float()

    ascent = engine.ascend(losses, rho=RHO)
    assert ascent.norms.dtype == torch.float64
    assert_close([ascent.norms], [expected], rtol=0.05)
    report = batched_per_instance_step(engine, losses, rho=RHO)
    full = transformer(dtype=torch.float32)
    there = batched_per_instance_step(Engine(full.model), full.losses(), rho=RHO)
    assert_close([report.perturbed_losses], [there.perturbed_losses], rtol=0.05)
    assert all(p.grad.dtype == dtype for p in half.params if p.grad is not None)
