"""What the batched step costs, and how it chooses among equal ways."""

from __future__ import annotations

import statistics
from typing import NoReturn

import pytest
import torch
from torch import Tensor

from deltasam_fairseq.per_instance import Engine, Plan
from deltasam_fairseq.per_instance.factors import Dense, Form, Outer, Rows
from deltasam_fairseq.per_instance.norms import gathered
from scripts.studies.length import Encoder, Problem, ratios, take_turns
from tests.support.problems import transformer


@pytest.mark.slow
def test_costs_about_what_sam_costs() -> None:
    torch.manual_seed(0)
    encoder = Encoder(layers=6, width=384, heads=12, words=8000)
    steps = take_turns(Problem(encoder, sentences=16, tokens=64), {"plan": Plan()}, repeats=5)
    assert statistics.median(ratios(steps, "plan", "processor")) < 1.3


def test_the_first_pass_computes_no_weight_gradients() -> None:
    toy = transformer()

    def reached(_: Tensor) -> NoReturn:
        raise AssertionError("a gradient reached a parameter")

    hooks = [p.register_hook(reached) for p in toy.params]
    Engine(toy.model).ascend(toy.losses(), rho=0.1)
    for hook in hooks:
        hook.remove()


def test_one_backward_pass_once_the_layouts_are_settled() -> None:
    toy = transformer()
    engine = Engine(toy.model)
    calls = []

    def losses() -> Tensor:
        found = toy.losses()()
        found.register_hook(lambda g: calls.append(g.tolist()))
        return found

    for _ in range(3):
        engine.ascend(losses, rho=0.1)
    assert calls == [[1, 1, 1], [1, 2.5, 4]] * 2 + [[1, 1, 1]]


def outer(length: int, height: int, width: int) -> Outer:
    return Outer(torch.zeros(1, length, height), torch.zeros(1, length, width))


def test_long_sentences_have_their_gradients_formed() -> None:
    plan, square = Plan(crossover=1.0), torch.Size((100, 100))
    assert [plan.forms_gradients([outer(t, 100, 100)], square) for t in (50, 51)] == [False, True]
    rows = Rows(torch.zeros(1, 60, dtype=torch.int64), torch.zeros(1, 60, 100))
    both: list[list[Form]] = [[outer(t, 100, 100), rows] for t in (20, 21)]
    assert [plan.forms_gradients(forms, square) for forms in both] == [False, True]
    assert not plan.forms_gradients([Dense(torch.zeros(1, 100, 100))], square)


def test_an_output_layer_with_a_long_source_is_not_formed() -> None:
    """The embedding that it is tied to adds rows, which are as wide as the model only."""
    words = torch.Size((50264, 1024))
    source = Rows(torch.empty(1, 1024, dtype=torch.int64), torch.empty(1, 1024, 1024))
    assert not Plan().forms_gradients([outer(128, *words), source], words)


def test_formed_gradients_take_the_place_of_their_factors() -> None:
    square = torch.Size((3, 3))
    (formed,) = gathered(square, [outer(9, 3, 3)] * 2, Plan())
    assert isinstance(formed, Dense) and formed.value.shape == (1, 3, 3)
    forms = [outer(1, 3, 3)]
    assert gathered(square, forms, Plan()) == forms


def test_pieces_that_fit_the_memory() -> None:
    one = torch.ones(1)
    assert list(Plan(memory=40).sentences(5, 4, one)) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert len(list(Plan(memory=1).sentences(3, 4, one))) == 3
    assert Plan(memory=4 * 2 * 7 * 3).rows(2, 7, one) == 3
    assert Plan(memory=1).rows(2, 7, one) == 1
    assert Plan(memory=24).rows(1, 3, one.half()) == 2
