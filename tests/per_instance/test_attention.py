"""PyTorch's own attention and transformer, against the loop in double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from deltasam_fairseq.core import per_instance_step
from deltasam_fairseq.per_instance import Engine, Unsupported, batched_per_instance_step
from scripts.studies import length as plain
from tests.per_instance.toys import (
    PADDING,
    PLANS,
    Tagger,
    assert_equals_loop,
    problem,
    tokens_of,
)
from tests.support.compare import assert_close
from tests.support.problems import Problem

WIDTH = 4


class SelfAttention(nn.Module):
    """Attention of a sequence to itself, in one of the ways people call it."""

    def __init__(self, *, mask: str = "none", weights: bool = False, **options) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, **options)
        self.mask = mask
        self.weights = weights

    def forward(self, hidden: Tensor) -> Tensor:
        length = hidden.shape[int(self.attention.batch_first)]
        count = hidden.shape[1 - int(self.attention.batch_first)]
        options: dict = {}
        if self.mask in {"causal", "hint"}:
            options["attn_mask"] = torch.ones(length, length, dtype=torch.bool).triu(1)
            options["is_causal"] = self.mask == "hint"
        if self.mask == "each head":
            options["attn_mask"] = torch.linspace(
                -1, 1, 2 * count * length**2, dtype=hidden.dtype
            ).view(2 * count, length, length)
        if self.mask in {"padding", "both"}:
            padding = torch.zeros(count, length, dtype=torch.bool)
            padding[::2, 1:] = True
            options["key_padding_mask"] = padding
        if self.mask == "both":
            options["attn_mask"] = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed, probabilities = self.attention(
            hidden, hidden, hidden, need_weights=self.weights, **options
        )
        return (
            mixed
            if probabilities is None
            else mixed + probabilities.square().sum((1, 2))[:, None, None]
        )


class CrossAttention(nn.Module):
    """Attention to something else, with keys and values of one width or of three."""

    def __init__(self, *, widths: tuple[int, int] | None, same: bool) -> None:
        super().__init__()
        key, value = widths or (WIDTH, WIDTH)
        self.project = nn.ModuleList(nn.Linear(WIDTH, w) for w in (key, value))
        own = {} if widths is None else {"kdim": key, "vdim": value}
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True, **own)
        self.same = same

    def forward(self, hidden: Tensor) -> Tensor:
        # One key more than there are queries.
        longer = torch.cat([hidden, hidden[:, :1]], 1)
        key, value = (project(longer) for project in self.project)
        mixed: Tensor = self.attention(hidden, key, key if self.same else value)[0]
        return mixed


ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: SelfAttention(batch_first=True),
    "without bias": lambda: SelfAttention(batch_first=True, bias=False),
    "probabilities": lambda: SelfAttention(batch_first=True, mask="both", weights=True),
    "causal": lambda: SelfAttention(batch_first=True, mask="causal"),
    "causal, hint": lambda: SelfAttention(batch_first=True, mask="hint"),
    "each head": lambda: SelfAttention(batch_first=True, mask="each head"),
    "padding": lambda: SelfAttention(batch_first=True, mask="padding"),
    "both masks": lambda: SelfAttention(batch_first=True, mask="both"),
    "cross": lambda: CrossAttention(widths=None, same=True),
    "three tensors": lambda: CrossAttention(widths=None, same=False),
    "three widths": lambda: CrossAttention(widths=(3, 5), same=False),
}
# With one key, or few, queries have next to no gradient that tells whose they are.
NEEDS_KEYS = {"probabilities", "padding", "both masks", "cross", "three tensors", "three widths"}


@hypothesis.settings(max_examples=6, deadline=None)
@given(
    sentences=st.integers(1, 4),
    length=st.integers(1, 4),
    plan=st.sampled_from(sorted(PLANS)),
    seed=st.integers(0, 100),
)
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_any_shape_equals_the_loop(
    kind: str, sentences: int, length: int, plan: str, seed: int
) -> None:
    length += 2 * (kind in NEEDS_KEYS)
    toy = problem(Tagger(ATTENTIONS[kind]()), sentences=sentences, length=length, seed=seed)
    assert_equals_loop(toy, plan=PLANS[plan])


@pytest.mark.parametrize("average", [True, False])
def test_probabilities_are_those_of_pytorch(average: bool) -> None:
    toy = problem(Tagger(nn.Identity()), sentences=3, length=4)
    attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True).double()
    model = nn.ModuleDict({"toy": toy.model, "attention": attention})
    seen: list[Tensor] = []

    def losses() -> Tensor:
        hidden = toy.model.get_submodule("embedding")(toy.batches[0][0])
        mixed, weights = attention(hidden, hidden, hidden, average_attn_weights=average)
        seen.append(weights.detach())
        return mixed.square().sum((1, 2)) + weights.square().flatten(1).sum(1)

    losses()
    Engine(model).ascend(losses, rho=0.1)
    assert_close([seen[1]], [seen[0]], rtol=1e-10)


class Encoder(nn.Module):
    """PyTorch's transformer with padding, in training mode."""

    def __init__(self, *, dropout: float, norm_first: bool, batch_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, WIDTH, padding_idx=PADDING)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 2, 7, dropout, norm_first=norm_first, batch_first=batch_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 9)
        self.batch_first = batch_first

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        hidden = hidden if self.batch_first else hidden.transpose(0, 1)
        hidden = self.encoder(hidden, src_key_padding_mask=tokens == PADDING)
        logits: Tensor = self.head(hidden if self.batch_first else hidden.transpose(0, 1))
        return logits


def encoded(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    (tokens,) = batch
    loss = nn.functional.cross_entropy(
        model(tokens).transpose(1, 2), tokens, ignore_index=PADDING, reduction="none"
    )
    return loss.sum(1)


def encoder_problem(**options) -> Problem:
    model = Encoder(**options).double().train()
    tokens = [(tokens_of(2, 5, seed=n),) for n in range(2)]
    return Problem(model, encoded, tokens)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_transformer_in_training_sees_the_dropout_of_the_loop(
    dropout: float, batch_first: bool, norm_first: bool
) -> None:
    torch.manual_seed(0)
    toy = encoder_problem(dropout=dropout, norm_first=norm_first, batch_first=batch_first)
    engine = Engine(toy.model)
    for step in range(2):
        found = []
        for run in (
            lambda losses: per_instance_step(toy.params, losses, rho=0.3),
            lambda losses: batched_per_instance_step(engine, losses, rho=0.3),
        ):
            toy.model.zero_grad()
            torch.manual_seed(step)
            run(toy.losses(step))
            found.append({n: p.grad for n, p in toy.named.items() if p.grad is not None})
        assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_keys_that_are_added_are_refused(option: str) -> None:
    options: dict = {option: True}
    middle = SelfAttention(batch_first=True, **options)
    toy = problem(Tagger(middle, tied=False), sentences=2, length=3)
    with pytest.raises(Unsupported, match="without bias_k, bias_v, add_zero_attn"):
        Engine(toy.model).ascend(toy.losses(), rho=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"])
def test_fused_kernels_are_as_close_to_the_loop_as_the_precision_allows(
    kernel: str, dtype: torch.dtype, device: torch.device
) -> None:
    """The loop runs in float32, with attention in plain products."""
    attention = pytest.importorskip("torch.nn.attention")
    if not hasattr(attention.SDPBackend, kernel):
        pytest.skip("this torch has no such kernel")
    backend = getattr(attention.SDPBackend, kernel)
    torch.manual_seed(1)
    exact = plain.Encoder(layers=2, width=32, heads=2, words=50).to(device)
    encoder = copy.deepcopy(exact).to(dtype)
    exact.load_state_dict(encoder.state_dict())
    loop, batched = (plain.Problem(e, sentences=4, tokens=16) for e in (exact, encoder))
    try:
        with attention.sdpa_kernel(backend):
            batched.losses().sum().backward()
    except (RuntimeError, AssertionError) as refused:
        pytest.skip(f"no such kernel here: {refused}")
    with attention.sdpa_kernel(attention.SDPBackend.MATH):
        per_instance_step(loop.params, loop.losses, rho=2.0)
        expected = grads(exact)
        exact.zero_grad()
        per_instance_step(loop.params, loop.losses, rho=0.0)
    engine = Engine(encoder)
    with attention.sdpa_kernel(backend):
        for _ in range(3):
            encoder.zero_grad()
            batched_per_instance_step(engine, batched.losses, rho=2.0)
    unmoved = grads(exact)
    found = grads(encoder)
    bound = 1e-4 if dtype == torch.float32 else 0.1
    assert (unmoved - expected).norm() > 2 * bound * expected.norm()
    wrong = float((found - expected).norm() / expected.norm())
    print(f"{device}, {kernel}, {dtype}: {wrong:.2g}")
    assert wrong < bound


def grads(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
