"""What the engine cannot do exactly it refuses, by name, and leaves everything as it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm
from torch.utils.checkpoint import checkpoint

from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.per_instance import (
    Engine,
    Unsupported,
    batched_per_instance_step,
    per_sentence_gradient_norms,
)
from tests.per_instance.toys import Tagger, problem
from tests.support.problems import Problem, mlp, transformer

WIDTH = 4


class Using(nn.Module):
    """A linear layer whose weight is used once more, in a way of its own."""

    def __init__(self, how: Callable[[Tensor, nn.Linear], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.how = how

    def forward(self, hidden: Tensor) -> Tensor:
        return self.how(self.layer(hidden), self.layer)


class Opaque(torch.autograd.Function):
    """A product that PyTorch cannot override."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, delta):
        x, weight = ctx.saved_tensors
        return delta @ weight, delta.flatten(0, 1).T @ x.flatten(0, 1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.rnn(hidden)[0]


class Batchwise(nn.Module):
    """Sentences that are not independent."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layer(hidden) - self.layer(hidden).mean(0)


def checkpointed(hidden: Tensor, layer: nn.Module, *, reentrant: bool) -> Tensor:
    return checkpoint(layer, hidden, use_reentrant=reentrant)


@torch.no_grad()
def measured(hidden: Tensor, layer: nn.Linear) -> Tensor:
    return layer.weight.norm() * torch.ones_like(hidden)


def overwritten(hidden: Tensor, layer: nn.Linear) -> Tensor:
    once = hidden * 1
    twice: Tensor = layer(once)
    once.mul_(2)
    return twice


def shared_twice(hidden: Tensor, layer: nn.Linear) -> Tensor:
    rows = nn.functional.embedding(torch.arange(hidden.shape[1]), layer.weight)
    return (hidden + rows) * rows.sum()


def scaled_and_penalised(hidden: Tensor, layer: nn.Linear) -> Tensor:
    scale = 1 + layer.bias
    return hidden * scale + 1e-9 * scale.norm()


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a norm": (
        lambda: Using(lambda h, layer: h * layer.weight.norm()),
        r"middle\.layer\.weight is used in torch\.Tensor\.norm",
    ),
    "a matrix product": (
        lambda: Using(lambda h, layer: h @ layer.weight),
        r"middle\.layer\.weight is used in torch\.Tensor\.matmul",
    ),
    "a transpose": (
        lambda: Using(lambda h, layer: torch.mm(h.flatten(0, 1), layer.weight.t()).view(h.shape)),
        r"middle\.layer\.weight is used in torch\.Tensor\.t,",
    ),
    "its data": (
        lambda: Using(lambda h, layer: h * layer.weight.data.mean()),
        r"middle\.layer\.weight is used in torch\.Tensor\.data",
    ),
    "a number": (
        lambda: Using(lambda h, layer: h * layer.bias[0].item()),
        r"middle\.layer\.bias is used in torch\.Tensor\.__getitem__: .*rows can be picked",
    ),
    "no graph": (
        lambda: Using(lambda h, layer: h + measured(h, layer)),
        r"middle\.layer\.weight is used in torch\.Tensor\.norm",
    ),
    "an input": (
        lambda: Using(lambda h, layer: h + nn.functional.linear(layer.weight, layer.weight).sum()),
        r"middle\.layer\.weight is used in torch\.nn\.functional\.linear as an input",
    ),
    "a list": (
        lambda: Using(lambda h, layer: h + torch.cat([layer.weight, layer.weight]).sum()),
        r"middle\.layer\.weight is used in torch\.cat",
    ),
    "two parameters": (
        lambda: Using(lambda h, layer: h + (layer.weight + layer.bias).sum()),
        r"middle\.layer\.weight and middle\.layer\.bias are used in torch\.Tensor\.add",
    ),
    "a custom function": (
        lambda: Using(lambda h, layer: h + Opaque.apply(h, layer.weight)),
        r"middle\.layer\.weight is used in torch\.Tensor\.T\.__get__",
    ),
    "an operator below PyTorch's functions": (
        lambda: Using(lambda h, layer: h + torch.ops.aten.linear(h, layer.weight)),
        r"middle\.layer\.weight is used in aten\.linear, which has no layer rule",
    ),
    "weight norm": (
        lambda: weight_norm(nn.Linear(WIDTH, WIDTH)),
        r"middle\.weight_v and middle\.weight_g are used in _weight_norm",
    ),
    "a parametrization": (
        lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
        r"middle\.parametrizations\.weight\.original. and .* are used in _weight_norm",
    ),
    "a cast that changes the type": (
        lambda: Using(lambda h, layer: h * layer.weight.float().double().mean()),
        r"middle\.layer\.weight is used in torch\.Tensor\.float, which has no layer rule",
    ),
    "a scale of one and more that is used elsewhere": (
        lambda: Using(scaled_and_penalised),
        r"middle\.layer\.bias's output is shared by .* outside sums \(in torch\.Tensor\.norm\)",
    ),
    "a scale of one and more that is used elsewhere alone": (
        lambda: Using(lambda h, layer: h + 1e-9 * (1 + layer.bias).norm()),
        r"middle\.layer\.bias is used in torch\.Tensor\.add",
    ),
    "recurrence": (Recurrent, r"middle\.rnn\.weight_ih_l0 and .* are used in torch\.lstm"),
    "a scripted module": (
        lambda: torch.jit.script(nn.Sequential(nn.Linear(WIDTH, WIDTH))),
        r"middle\.0\.\w+ is used in \w+, which no layer rule can see",
    ),
    "checkpointing": (
        lambda: Using(partial(checkpointed, reentrant=True)),
        r"middle\.layer\.weight and .* inside torch\.utils\.checkpoint",
    ),
    "checkpointing with the graph": (
        lambda: Using(partial(checkpointed, reentrant=False)),
        r"middle\.layer\.weight and .* inside torch\.utils\.checkpoint",
    ),
    "sentences that depend on each other": (
        Batchwise,
        r"rows of embedding\.weight's output, .* no single sentence",
    ),
    "a maximal norm": (
        lambda: Using(
            lambda h, layer: (
                h
                + nn.functional.embedding(
                    torch.zeros(h.shape[:2], dtype=torch.long), layer.weight, max_norm=1.0
                )
            )
        ),
        r"middle\.layer\.weight is used in torch\.nn\.functional\.embedding: .*max_norm",
    ),
    "an overwritten input": (
        lambda: Using(overwritten),
        r"the input of middle\.layer\.weight and middle\.layer\.bias was overwritten",
    ),
    "shared rows outside a sum": (
        lambda: Using(
            lambda h, layer: (
                h + nn.functional.embedding(torch.arange(h.shape[1]), layer.weight).tanh()
            )
        ),
        r"rows of middle\.layer\.weight's output, of shape \(3, 4\), have no single sentence",
    ),
    "rows as a matrix": (
        lambda: Using(lambda h, layer: h @ layer.weight[:WIDTH]),
        r"rows of middle\.layer\.weight's output.* \(they are used in torch\.Tensor\.matmul\)",
    ),
    "shared rows in and outside a sum": (
        lambda: Using(lambda h, layer: h + shared_twice(h, layer)),
        r"middle\.layer\.weight's output is shared by sentences and used outside sums",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name_and_nothing_is_touched(case: str) -> None:
    make, complaint = REFUSED[case]
    toy = problem(Tagger(make(), tied=False), sentences=2, length=3)
    before = torch.get_rng_state()
    engine = Engine(toy.model)
    with pytest.raises(Unsupported, match=complaint):
        batched_per_instance_step(engine, toy.losses(), rho=0.1)
    assert all(p.grad is None for p in toy.params)
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(Unsupported, match=complaint):
        per_sentence_gradient_norms(toy.model, toy.losses())


def test_frozen_parameters_may_be_used_in_any_way() -> None:
    toy = problem(Tagger(Recurrent(), tied=False), sentences=2, length=3)
    toy.model.get_submodule("middle").requires_grad_(False)
    batched_per_instance_step(Engine(toy.model), toy.losses(), rho=0.1)
    assert toy.named["head.weight"].grad is not None


def test_a_second_pass_that_is_another() -> None:
    toy = mlp()
    calls: list[None] = []

    def losses() -> Tensor:
        calls.append(None)
        extra = toy.model.get_submodule("0")(toy.batches[0][0]).sum() if len(calls) > 1 else 0.0
        return toy.losses()() + extra

    with pytest.raises(Unsupported, match="does not repeat the first"):
        batched_per_instance_step(Engine(toy.model), losses, rho=0.1)
    assert all(p.grad is None for p in toy.params)


def test_a_second_pass_that_is_shorter() -> None:
    toy = transformer()
    engine = Engine(toy.model)
    ascent = engine.ascend(toy.losses(), rho=0.1)
    with pytest.raises(Unsupported, match="has 0 uses of parameters, the first"):
        with ascent.perturbed():
            pass


def test_adaptive_neighbourhoods() -> None:
    toy = mlp()
    space = WeightSpace(toy.params, adaptive=[id(toy.params[0])])
    with pytest.raises(Unsupported, match="adaptive"):
        Engine(toy.model, space)


def test_losses_that_are_no_vector() -> None:
    toy: Problem = mlp()
    with pytest.raises(ValueError, match=r"a vector of shape \(N,\); got shape \(\)"):
        Engine(toy.model).ascend(lambda: toy.losses()().mean(), rho=0.1)
