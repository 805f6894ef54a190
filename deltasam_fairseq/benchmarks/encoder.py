"""A small transformer in plain PyTorch, for what is measured without fairseq."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A transformer's layer whose attention calls its projections.

    Args:
        width: Of the layer; the inner layer has four times as much.
        heads: Of the attention; they divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the next layer's input, shape ``(N, T, width)`` like this one's."""
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


class Encoder(nn.Module):
    """Words, layers, and two classes from the first token.

    Args:
        layers: How many.
        width: Of the layers.
        heads: Of each attention.
        words: Size of the vocabulary.
    """

    def __init__(self, *, layers: int, width: int, heads: int, words: int) -> None:
        super().__init__()
        self.words = words
        blocks = [Block(width, heads) for _ in range(layers)]
        self.layers = nn.Sequential(nn.Embedding(words, width), *blocks)
        self.head = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits, shape ``(N, 2)``, of tokens of shape ``(N, T)``."""
        logits: Tensor = self.head(self.layers(tokens)[:, 0])
        return logits


class Problem:
    """An encoder, a batch of random words and its losses.

    Args:
        encoder: The model.
        sentences: Size of the batch.
        tokens: Of each sentence.
        seed: Of the words.
    """

    def __init__(self, encoder: Encoder, *, sentences: int, tokens: int, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.encoder = encoder
        self.params = list(encoder.parameters())
        device = self.params[0].device
        shape = (sentences, tokens)
        self.tokens = torch.randint(encoder.words, shape, generator=draw).to(device)
        self.classes = torch.arange(sentences, device=device) % 2

    def losses(self) -> Tensor:
        """Run one forward pass; one loss per sentence, shape ``(N,)``, nats."""
        return nn.functional.cross_entropy(
            self.encoder(self.tokens), self.classes, reduction="none"
        )
