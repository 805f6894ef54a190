"""A BERT-like encoder with a classification head, in plain PyTorch.

Written out so that every number's precision is visible: what a product's
factors are rounded to, where a softmax goes up to float32, and dropout masks
that do not depend on the dtype.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

DROPOUT = 0.1


class Size(NamedTuple):
    """Hyperparameters of an encoder.

    Args:
        layers: Number of layers.
        width: Width of the residual stream.
        heads: Attention heads of a layer.
        inner: Width of the feed-forward layer.
        vocabulary: Number of tokens.
        positions: Longest sequence.
        segments: Number of token types.
        epsilon: Of the layer norms.
    """

    layers: int
    width: int
    heads: int
    inner: int
    vocabulary: int
    positions: int
    segments: int
    epsilon: float = 1e-5


class Batch(NamedTuple):
    """Sentences or pairs of them.

    Args:
        tokens: Shape ``(N, T)``.
        segments: Token types, shape ``(N, T)``.
        padding: True where there is no token, shape ``(N, T)``.
        labels: Shape ``(N,)``.
    """

    tokens: Tensor
    segments: Tensor
    padding: Tensor
    labels: Tensor


class Classifier(nn.Module):
    """Embeddings, post-norm Transformer layers, and RoBERTa's head on the first token.

    Args:
        size: Of the encoder.
        classes: Number of labels.
    """

    def __init__(self, size: Size, classes: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.positions, size.width)
        self.segments = nn.Embedding(size.segments, size.width)
        self.norm = nn.LayerNorm(size.width, eps=size.epsilon)
        self.layers = nn.ModuleList(Layer(size) for _ in range(size.layers))
        self.dense = Linear(size.width, size.width)
        self.out = Linear(size.width, classes)
        self.dropout = Dropout()

    def forward(self, batch: Batch) -> Tensor:
        """Classify.

        Args:
            batch: The sentences.

        Returns:
            Logits, shape ``(N, classes)``.
        """
        places = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        x = self.words(batch.tokens) + self.positions(places) + self.segments(batch.segments)
        x = self.dropout(self.norm(x))
        for layer in self.layers:
            x = layer(x, batch.padding)
        first = self.dropout(x[:, 0])
        logits: Tensor = self.out(self.dropout(torch.tanh(self.dense(first))))
        return logits

    def losses(self, batch: Batch) -> Tensor:
        """Return one cross entropy per sentence.

        The softmax is taken in float32 at least, as fairseq's criterions do.

        Args:
            batch: The sentences.

        Returns:
            Nats, shape ``(N,)``.
        """
        logits = self(batch)
        full = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return functional.cross_entropy(full, batch.labels, reduction="none")


class Layer(nn.Module):
    """Self-attention and a feed-forward network, each followed by a layer norm.

    Args:
        size: Of the encoder.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.query = Linear(size.width, size.width)
        self.key = Linear(size.width, size.width)
        self.value = Linear(size.width, size.width)
        self.output = Linear(size.width, size.width)
        self.attention_norm = nn.LayerNorm(size.width, eps=size.epsilon)
        self.up = Linear(size.width, size.inner)
        self.down = Linear(size.inner, size.width)
        self.norm = nn.LayerNorm(size.width, eps=size.epsilon)
        self.dropout = Dropout()

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """Run the layer.

        Args:
            x: Shape ``(N, T, width)``.
            padding: Shape ``(N, T)``.

        Returns:
            Shape ``(N, T, width)``.
        """
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        scores = product(query, key.transpose(2, 3)) / math.sqrt(query.shape[-1])
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        scores = scores.masked_fill(padding[:, None, None], -math.inf)
        shares = self.dropout(scores.softmax(-1).to(value.dtype))
        seen = product(shares, value).transpose(1, 2).flatten(2)
        x = self.attention_norm(x + self.dropout(self.output(seen)))
        inner = functional.gelu(self.up(x))
        normed: Tensor = self.norm(x + self.dropout(self.down(inner)))
        return normed

    def _split(self, x: Tensor) -> Tensor:
        sentences, tokens, width = x.shape
        return x.view(sentences, tokens, self.heads, width // self.heads).transpose(1, 2)


class Linear(nn.Linear):
    """A linear layer whose float16 product is that of a GPU on a CPU too."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return ``input @ weight.T + bias``.

        Args:
            input: Shape ``(..., in)``.

        Returns:
            Shape ``(..., out)``.
        """
        if not _emulates(input):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            factors = [t.half().float() for t in (input, self.weight, self.bias)]
            return functional.linear(*factors).half()


class Dropout(nn.Module):
    """Dropout with the same masks in every dtype for the same random state."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries while training.

        Args:
            x: Any shape.

        Returns:
            The same shape.
        """
        if not self.training:
            return x
        kept = torch.rand(x.shape, device=x.device) >= DROPOUT
        return x * kept.to(x.dtype) / (1 - DROPOUT)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply matrices, in float16 as a GPU does: the sums in float32, the result rounded.

    A CPU's own float16 product is two hundred times slower than float32's.

    Args:
        left: Shape ``(..., n, k)``.
        right: Shape ``(..., k, m)``.

    Returns:
        Shape ``(..., n, m)``.
    """
    if not _emulates(left):
        return left @ right
    with torch.autocast("cpu", enabled=False):
        return (left.half().float() @ right.half().float()).half()


def _emulates(tensor: Tensor) -> bool:
    """Tell whether PyTorch would take a product in float16 on the CPU, autocast or not."""
    one = tensor.new_zeros(1, 1)
    return tensor.device.type == "cpu" and (one @ one).dtype == torch.float16


def random_weights(model: Classifier, seed: int, std: float = 0.02) -> None:
    """Draw matrices and embeddings anew; biases become 0, layer norms the identity.

    Args:
        model: Changed in place.
        seed: Of the draw.
        std: Standard deviation of the entries.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, std, generator=generator)
            if isinstance(module, nn.Linear):
                module.bias.zero_()
