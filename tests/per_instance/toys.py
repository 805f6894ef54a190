"""Models with one kind of layer each, and the comparison with the loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deltasam_fairseq.core import reference
from deltasam_fairseq.per_instance import Engine, Plan, batched_per_instance_step
from tests.support.compare import assert_close
from tests.support.problems import Problem

PADDING = 0
THIN = Plan(crossover=1e9)
FORMED = Plan(crossover=0.0)
TIGHT = Plan(memory=64, crossover=1e9)
TIGHT_FORMED = Plan(memory=64, crossover=0.0)
PLANS = {"thin": THIN, "formed": FORMED, "tight": TIGHT, "tight formed": TIGHT_FORMED}


class Tagger(nn.Module):
    """Token embeddings, whatever is in the middle, and a linear head.

    Args:
        middle: Maps hidden states to hidden states, in its own layout.
        time_first: Whether the middle sees ``(T, N, C)``.
        tied: Whether the head's weight is the embedding's.
    """

    def __init__(
        self, middle: nn.Module, *, width: int = 4, time_first: bool = False, tied: bool = True
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, width, padding_idx=PADDING)
        self.middle = middle
        self.head = nn.Linear(width, 9)
        self.time_first = time_first
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        if self.time_first:
            hidden = self.middle(hidden.transpose(0, 1)).transpose(0, 1)
        else:
            hidden = self.middle(hidden)
        logits: Tensor = self.head(hidden.tanh())
        return logits


def tokens_of(sentences: int, length: int, *, seed: int = 0) -> Tensor:
    """Draw sentences of different lengths; the last of three or more is all padding."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 9, (sentences, length), generator=generator)
    for row in range(sentences):
        tokens[row, max(1, length - row % 3) :] = PADDING
    if sentences > 2:
        tokens[-1] = PADDING
    return tokens


def tagged(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Score every token by its own class; padding has no loss."""
    (tokens,) = batch
    logits = model(tokens).transpose(1, 2)
    return nn.functional.cross_entropy(logits, tokens, ignore_index=PADDING, reduction="none").sum(
        1
    )


def problem(
    model: nn.Module,
    *,
    sentences: int,
    length: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    score: Callable = tagged,
) -> Problem:
    """Make a problem of three batches with weights that are far from their start."""
    generator = torch.Generator().manual_seed(seed)
    model.to(dtype)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator, dtype=dtype))
    batches: list[tuple[Tensor, ...]] = [
        (tokens_of(sentences, length, seed=seed + n),) for n in range(3)
    ]
    return Problem(model, score, batches)


def assert_equals_loop(
    toy: Problem,
    *,
    rho: float = 0.3,
    rtol: float = 1e-10,
    atol: float = 1e-10,
    plan: Plan | None = None,
) -> None:
    """Compare three steps of one engine with the reference twin."""
    engine = Engine(toy.model, plan=plan)
    for step, batch in enumerate(toy.batches):
        toy.model.zero_grad()
        report = batched_per_instance_step(engine, toy.losses(step), rho=rho)
        assert report.losses.shape == report.perturbed_losses.shape == (len(batch[0]),)
        expected = reference.per_instance_gradient(toy.losses_at(step), toy.params, rho=rho)
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in toy.params]
        assert_close(
            dict(zip(toy.named, found, strict=True)),
            dict(zip(toy.named, expected, strict=True)),
            rtol=rtol,
            atol=atol,
        )
    assert_weighs_gradients(engine, toy, rtol=rtol, atol=atol)
    assert_shares_perturbations(engine, toy, rho=rho, rtol=rtol, atol=atol)


def assert_shares_perturbations(
    engine: Engine, toy: Problem, *, rho: float, rtol: float, atol: float
) -> None:
    """Compare groups of sentences, one of them smaller, with the reference twin."""
    count = len(toy.batches[0][0])
    groups = [own for own in (list(range(count))[::-2], list(range(count))[-2::-2]) if own]
    toy.model.zero_grad()
    batched_per_instance_step(engine, toy.losses(), rho=rho, groups=lambda losses: groups)
    expected = reference.per_instance_gradient(toy.losses_at(), toy.params, rho=rho, groups=groups)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in toy.params]
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted.to(got), rtol=rtol, atol=atol)


def assert_weighs_gradients(engine: Engine, toy: Problem, *, rtol: float, atol: float) -> None:
    """Compare the weighted sum of the sentences' gradients with a backward pass."""
    ascent = engine.ascend(toy.losses(), rho=0.0)
    shares = torch.linspace(0.2, 1.7, len(ascent.losses)).to(ascent.losses)
    weighted = (shares * toy.losses()()).sum()
    expected = torch.autograd.grad(weighted, list(engine.space), allow_unused=True)
    for got, wanted in zip(ascent.weighted_gradient(shares), expected, strict=True):
        if got is None:
            assert wanted is None or not wanted.any()
        else:
            there = torch.zeros_like(got) if wanted is None else wanted.to(got)
            torch.testing.assert_close(got, there, rtol=rtol, atol=atol)
