"""Toy problems for the core: small models, and losses whose answers are known.

A problem is a module, a batch and the losses of its sentences. ``losses`` reads
the module's own weights, as a closure does; ``losses_at`` is the same function
of explicit weights, as the slow twins want it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from deltasam_fairseq.core.vectors import unique


@dataclass
class Problem:
    """A model and a stream of batches.

    Args:
        model: The module; a tied parameter is in it once for every use.
        score: Losses of one batch, shape ``(N,)``.
        batches: Inputs of ``score``, one per update.
    """

    model: nn.Module
    score: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]
    batches: list[tuple[Tensor, ...]]

    @property
    def params(self) -> list[Tensor]:
        """The parameters, each once."""
        return unique(self.model.parameters())

    @property
    def named(self) -> dict[str, Tensor]:
        """The parameters, each once, by the name of their first use."""
        return dict(self.model.named_parameters())

    def losses(self, step: int = 0) -> Callable[[], Tensor]:
        """Return a closure over one batch."""
        return lambda: self.score(self.model, self.batches[step])

    def losses_at(self, step: int = 0) -> Callable[[Sequence[Tensor]], Tensor]:
        """Return the losses of one batch as a function of the weights."""
        names = list(self.named)
        caller = _Scorer(self.model, self.score)

        def at(weights: Sequence[Tensor]) -> Tensor:
            named = {f"model.{n}": w for n, w in zip(names, weights, strict=True)}
            return torch.func.functional_call(caller, named, (self.batches[step],))

        return at


class _Scorer(nn.Module):
    """Scoring as a module, which is what ``functional_call`` can call."""

    def __init__(self, model: nn.Module, score: Callable) -> None:
        super().__init__()
        self.model = model
        self.score = score

    def forward(self, batch: tuple[Tensor, ...]) -> Tensor:
        return self.score(self.model, batch)


def mlp(
    *,
    sentences: int = 4,
    width: int = 3,
    dropout: float = 0.0,
    steps: int = 5,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Problem:
    """Make a regression problem for two linear layers with a tanh between them."""
    with seeded(seed):
        model = nn.Sequential(
            nn.Linear(width, 5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 1)
        ).to(dtype)
        batches: list[tuple[Tensor, ...]] = [
            (torch.randn(sentences, width, dtype=dtype), torch.randn(sentences, dtype=dtype))
            for _ in range(steps)
        ]
    return Problem(model, _squared_error, batches)


def _squared_error(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    inputs, targets = batch
    return (model(inputs).squeeze(1) - targets).square()


class TinyTransformer(nn.Module):
    """One block over embedded tokens; the embedding is the output layer too."""

    def __init__(self, vocabulary: int, width: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.1 * torch.randn(8, width))
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, vocabulary)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        length, width = tokens.shape[1], self.embedding.embedding_dim
        hidden = self.dropout(self.embedding(tokens) + self.positions[:length])
        q, k, v = self.queries_keys_values(self.attention_norm(hidden)).chunk(3, dim=-1)
        scores = q @ k.transpose(1, 2) / math.sqrt(width)
        causal = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(causal, -torch.inf).softmax(dim=-1) @ v
        hidden = hidden + self.dropout(self.mixed(mixed))
        hidden = hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))
        return self.output(hidden)


def transformer(
    *,
    sentences: int = 3,
    dropout: float = 0.0,
    steps: int = 5,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Problem:
    """Make a language model with a tied embedding; a loss sums over its tokens."""
    vocabulary, width, length = 11, 6, 5
    with seeded(seed):
        model = TinyTransformer(vocabulary, width, dropout).to(dtype)
        batches: list[tuple[Tensor, ...]] = [
            (torch.randint(1, vocabulary, (sentences, length)),) for _ in range(steps)
        ]
        for (tokens,) in batches:  # sentences of different lengths, padded with 0
            for row in range(1, sentences):
                tokens[row, length - row % 3 :] = 0
    return Problem(model, _summed_cross_entropy, batches)


def _summed_cross_entropy(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    (tokens,) = batch
    logits = model(tokens[:, :-1]).transpose(1, 2)
    return cross_entropy(logits, tokens[:, 1:], ignore_index=0, reduction="none").sum(dim=1)


class Vector(nn.Module):
    """A model that is nothing but its weights."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(values)


def vector_problem(values: Tensor, losses: Callable[[Tensor], Tensor]) -> Problem:
    """Make a problem of one weight vector and losses that are a function of it."""
    return Problem(Vector(values.clone()), lambda model, _: losses(cast("Vector", model).w), [()])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seed and leave the caller's generator alone."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


class Calls:
    """A closure that counts its calls and can be told to fail or to change.

    Args:
        losses: What to call.
        fail_at: Number of the call that raises, from 1; 0 for none.
        before: Called with the number of each call, before it.
    """

    def __init__(
        self,
        losses: Callable[[], Tensor],
        *,
        fail_at: int = 0,
        before: Callable[[int], None] | None = None,
    ) -> None:
        self.losses = losses
        self.fail_at = fail_at
        self.before = before
        self.count = 0

    def __call__(self) -> Tensor:
        self.count += 1
        if self.count == self.fail_at:
            raise Broken(f"call {self.count}")
        if self.before is not None:
            self.before(self.count)
        return self.losses()


class Broken(Exception):
    """What a closure raises when it is told to fail."""
