"""What the batched step costs, and how it chooses among equal ways."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NoReturn

import pytest
import torch
from torch import Tensor, nn

from deltasam_fairseq.core import sam_step
from deltasam_fairseq.core.per_instance import Engine, Plan, batched_per_instance_step
from tests.support.problems import transformer


class Block(nn.Module):
    """A transformer's layer whose attention calls its projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        count, length, width = hidden.shape
        query, key, value = (
            p(hidden).view(count, length, self.heads, -1).transpose(1, 2)
            for p in list(self.projections)[:3]
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        mixed = self.projections[3](mixed.transpose(1, 2).reshape(count, length, width))
        hidden = self.norms[0](hidden + mixed)
        normed: Tensor = self.norms[1](hidden + self.feed_forward(hidden))
        return normed


def encoder(layers: int, width: int, words: int) -> nn.Sequential:
    blocks = [Block(width, 12) for _ in range(layers)]
    return nn.Sequential(nn.Embedding(words, width), *blocks, nn.Linear(width, 2))


def ratio_to_sam(
    *,
    layers: int = 6,
    width: int = 384,
    sentences: int = 16,
    length: int = 64,
    words: int = 8000,
    rounds: int = 3,
) -> float:
    """Measure a batched step in units of a SAM step, processor time, best of the rounds."""
    torch.manual_seed(0)
    model = encoder(layers, width, words)
    tokens, targets = torch.randint(words, (sentences, length)), torch.arange(sentences) % 2

    def losses() -> Tensor:
        return nn.functional.cross_entropy(model(tokens)[:, 0], targets, reduction="none")

    engine, params = Engine(model), list(model.parameters())
    steps: dict[str, Callable[[], object]] = {
        "sam": lambda: sam_step(params, losses, rho=0.05),
        "batched": lambda: batched_per_instance_step(engine, losses, rho=0.05),
    }
    for _ in range(2):  # two batches settle where the sentences are
        batched_per_instance_step(engine, losses, rho=0.05)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            model.zero_grad()
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    return min(seconds["batched"]) / min(seconds["sam"])


@pytest.mark.slow
def test_costs_about_what_sam_costs() -> None:
    assert ratio_to_sam() < 1.3


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


def test_long_sentences_have_their_gradients_formed() -> None:
    plan = Plan(norm_crossover=1.0, product_crossover=0.5)
    square = torch.Size((100, 100))
    assert [plan.forms_gradients(t, square) for t in (50, 51)] == [False, True]
    one = torch.ones(1)
    assert [plan.forms_matrices(t, square, one) for t in (25, 26)] == [False, True]
    tight = Plan(memory=4 * square.numel() - 1)
    assert not tight.forms_matrices(1000, square, one)


def test_pieces_that_fit_the_memory() -> None:
    one = torch.ones(1)
    assert list(Plan(memory=40).sentences(5, 4, one)) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert len(list(Plan(memory=1).sentences(3, 4, one))) == 3
    assert Plan(memory=4 * 2 * 7 * 3).rows(torch.ones(2, 9, 1), 7) == 3
    assert Plan(memory=1).rows(torch.ones(2, 9, 1), 7) == 1
