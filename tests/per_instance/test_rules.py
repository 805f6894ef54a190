"""Every layer rule, in every layout, against the loop in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.nn.functional import embedding, layer_norm, linear

from deltasam_fairseq.per_instance import LAYER_RULES, Plan, per_sentence_gradient_norms
from tests.per_instance.toys import PADDING, PLANS, Tagger, assert_equals_loop, problem
from tests.support.problems import mlp, transformer

WIDTH = 4


class Flattened(nn.Module):
    """A layer that sees one row per token of the whole batch."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor) -> Tensor:
        rows: Tensor = self.layer(hidden.reshape(-1, hidden.shape[-1]))
        return rows.view(hidden.shape)


class Functional(nn.Module):
    """Parameters used directly: a product, a bias, a scale, and twice at that."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(WIDTH, WIDTH))
        self.bias = nn.Parameter(torch.empty(WIDTH))
        self.scale = nn.Parameter(torch.empty(1, WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        once = linear(hidden, self.weight) * self.scale + self.bias
        return linear(once.tanh(), self.weight, self.bias) + hidden


class Positions(nn.Module):
    """Positions that all sentences share, in one of the ways people write them."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(6, WIDTH))
        self.way = way

    def forward(self, hidden: Tensor) -> Tensor:
        count, length = hidden.shape[:2]
        where = torch.arange(length)
        if self.way == "slice":
            return hidden + self.weight[:length]
        if self.way == "one row":
            return embedding(where[None], self.weight) + hidden
        if self.way == "vector":
            return hidden.add_(embedding(where, self.weight))
        return hidden + embedding(where.expand(count, length), self.weight)


class Conv1D(nn.Module):
    """The Hugging Face Hub's: a linear layer whose weight is transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(WIDTH, WIDTH))
        self.bias = nn.Parameter(torch.empty(WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        rows = torch.addmm(self.bias, hidden.reshape(-1, WIDTH), self.weight)
        # A second use of the weight, of a form that is not a product of factors.
        return rows.view(hidden.shape) + embedding(torch.zeros(1, dtype=torch.long), self.weight)


class Shared(nn.Module):
    """Something of parameters, the same for all sentences until it meets their activations."""

    def __init__(self, how: Callable[[Shared, Tensor], Tensor]) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.empty(WIDTH))
        self.table = nn.Parameter(torch.empty(6, WIDTH))
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.how = how

    def forward(self, hidden: Tensor) -> Tensor:
        return self.how(self, hidden)

    def rows(self) -> Tensor:
        """Compute six rows from the table, as DeBERTa its relative positions."""
        normal = layer_norm(self.table, [WIDTH], self.vector)
        return self.layer(normal)[:3].unsqueeze(0)


def biased(own: Shared, hidden: Tensor) -> Tensor:
    """Mix tokens by scores with a bias that is looked up once for all sentences, as in T5."""
    where = torch.arange(hidden.shape[1])
    bias = embedding((where[:, None] - where).abs(), own.table)[..., :1].permute(2, 0, 1)
    scores = hidden @ hidden.transpose(1, 2)
    return (scores + bias).softmax(-1) @ hidden + torch.where(where > 0, bias, 0.0) @ hidden


def of_own_rows(own: Shared, hidden: Tensor) -> Tensor:
    """Look a row up for every sentence, which is broadcast over its tokens only."""
    each = embedding(torch.arange(len(hidden)) * 5 % 6, own.table).unsqueeze(1)
    return (hidden + each) * each.tanh()


SHARED: dict[str, Callable[[Shared, Tensor], Tensor]] = {
    "a scale of one and more": lambda own, h: h * (1.0 + own.vector),
    "a class token": lambda own, h: torch.cat([own.vector.expand(len(h), 1, WIDTH), h], 1)[:, :-1],
    "a layer of a table": lambda own, h: own.layer(h) - own.rows()[:, :1],
    "repeated": lambda own, h: h @ own.rows().repeat(len(h), 1, 1).mT.tanh() @ own.rows(),
    "a product": lambda own, h: h @ own.rows().transpose(1, 2) @ own.rows(),
    "a bias of scores": biased,
    "rows of each sentence": of_own_rows,
}


class Attention(nn.Module):
    """One head of attention with projections of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        q, k, v = (p(hidden) for p in self.projections)
        q *= 1 / math.sqrt(WIDTH)  # in place, as fairseq does
        mixed: Tensor = (q @ k.transpose(1, 2)).softmax(-1) @ v
        return hidden + mixed


class Normalised(nn.Module):
    """Normalisation as fairseq's Fp32LayerNorm calls it: through casts that change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        weight, bias = self.norm.weight.double(), self.norm.bias.to(hidden.dtype)
        found: Tensor = nn.functional.layer_norm(hidden.double(), [WIDTH], weight, bias)
        return found.type_as(hidden)


class TwoAxes(nn.Module):
    """Sentences, tokens and two groups of each token's features, shared weights within."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH // 2, WIDTH // 2)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layer(hidden.unflatten(-1, (2, -1))).flatten(-2)


MIDDLES: dict[str, Callable[[], nn.Module]] = {
    "nothing": nn.Identity,
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "linear without bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "layer norm without bias": lambda: nn.LayerNorm(WIDTH, bias=False),
    "flattened linear": lambda: Flattened(nn.Linear(WIDTH, WIDTH)),
    "flattened norm": lambda: Flattened(nn.LayerNorm(WIDTH)),
    "layer norm of casts": Normalised,
    "transposed linear": Conv1D,
    "RMS norm": lambda: nn.RMSNorm(WIDTH),
    "linear over two axes": TwoAxes,
    "functional": Functional,
    "feed-forward": lambda: nn.Sequential(
        nn.Linear(WIDTH, 7), nn.GELU(), nn.Linear(7, WIDTH), nn.LayerNorm(WIDTH)
    ),
}
POSITIONS = ["slice", "one row", "vector", "every row"]


@hypothesis.settings(max_examples=25, deadline=None)
@given(
    sentences=st.integers(0, 4),
    length=st.integers(1, 5),
    time_first=st.booleans(),
    tied=st.booleans(),
    plan=st.sampled_from(sorted(PLANS)),
    seed=st.integers(0, 100),
)
@pytest.mark.parametrize("middle", MIDDLES)
def test_any_shape_equals_the_loop(
    middle: str, sentences: int, length: int, time_first: bool, tied: bool, plan: str, seed: int
) -> None:
    model = Tagger(MIDDLES[middle](), time_first=time_first, tied=tied)
    toy = problem(model, sentences=sentences, length=length, seed=seed)
    assert_equals_loop(toy, plan=PLANS[plan])


@hypothesis.settings(max_examples=15, deadline=None)
@given(sentences=st.integers(0, 4), length=st.integers(1, 5), seed=st.integers(0, 100))
@pytest.mark.parametrize("way", POSITIONS)
def test_shared_positions(way: str, sentences: int, length: int, seed: int) -> None:
    assert_equals_loop(
        problem(Tagger(Positions(way)), sentences=sentences, length=length, seed=seed)
    )


@pytest.mark.parametrize("way", SHARED)
@pytest.mark.parametrize(("sentences", "length"), [(3, 5), (4, 4), (1, 3), (2, 1)])
def test_what_sentences_share(way: str, sentences: int, length: int) -> None:
    model = Tagger(Shared(SHARED[way]))
    assert_equals_loop(problem(model, sentences=sentences, length=length))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("sentences", [1, 2, 4])
def test_attention_with_in_place_scaling(sentences: int, plan: Plan) -> None:
    toy = problem(Tagger(Attention()), sentences=sentences, length=4)
    assert_equals_loop(toy, plan=plan)


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("length", [2, 3, 4])
def test_as_many_tokens_as_sentences(length: int, time_first: bool) -> None:
    model = Tagger(nn.Linear(WIDTH, WIDTH), time_first=time_first)
    assert_equals_loop(problem(model, sentences=length, length=length))


def picked_tokens(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Score the tokens that are no padding, after picking them as masked models do."""
    (tokens,) = batch
    masked = tokens != PADDING
    layer = model.get_submodule
    hidden = layer("middle")(layer("embedding")(tokens)[masked])
    token = nn.functional.cross_entropy(layer("head")(hidden), tokens[masked], reduction="none")
    owners = masked.nonzero(as_tuple=True)[0]
    return token.new_zeros(len(tokens)).index_add(0, owners, token)


@pytest.mark.parametrize("middle", ["linear", "feed-forward", "functional"])
@pytest.mark.parametrize(("sentences", "length"), [(2, 3), (4, 4), (4, 5), (3, 1)])
def test_packed_rows(sentences: int, length: int, middle: str) -> None:
    toy = problem(
        Tagger(MIDDLES[middle]()), sentences=sentences, length=length, score=picked_tokens
    )
    assert_equals_loop(toy)


def test_features_of_a_parameter_hold_no_sentences() -> None:
    """Two features of two sentences, one of them used by each: only rows may tell."""
    bias = nn.Parameter(torch.ones(2, dtype=torch.float64))
    model = nn.Module()
    model.bias = bias
    x = torch.zeros(2, 2, dtype=torch.float64)
    norms = per_sentence_gradient_norms(model, lambda: 3 * (x + bias).diagonal())
    assert norms.tolist() == [3.0, 3.0]


def test_two_dimensions() -> None:
    assert_equals_loop(mlp())


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_transformer_with_tied_output(plan: Plan) -> None:
    assert_equals_loop(transformer(steps=3), plan=plan)


def test_single_precision() -> None:
    toy = transformer(steps=3, dtype=torch.float32)
    assert_equals_loop(toy, rtol=1e-4, atol=1e-4)


def test_every_rule_says_what_it_is() -> None:
    names = {"linear", "embedding", "layer_norm"}
    assert {f"torch.nn.functional.{name}" for name in names} <= set(LAYER_RULES.names())
    assert all(LAYER_RULES.describe(name) for name in LAYER_RULES.names())
