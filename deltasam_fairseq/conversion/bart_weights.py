"""A BART model as names, shapes and values, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.conversion.shapes import (
    POSITION_OFFSET,
    Shapes,
    layer,
    pair,
    require_shapes,
)
from deltasam_fairseq.errors import UserError

#: The embedding of words, tied or not.
EMBEDDING = "encoder.embed_tokens.weight"
#: Names under which one and the same matrix is stored.
TIED = (EMBEDDING, "decoder.embed_tokens.weight", "decoder.output_projection.weight")


@dataclass(frozen=True)
class BartWeights:
    """Sizes and weights, under fairseq's names.

    Args:
        sizes: By the name of the flag of fairseq, one per name in
            :data:`~deltasam_fairseq.data.bart.SIZES`.
        state: Float32 tensors; those of ``TIED`` are one tensor.
    """

    sizes: Mapping[str, Any]
    state: Mapping[str, Tensor]

    @property
    def rows(self) -> int:
        """Number of symbols that the model embeds."""
        return self.state[EMBEDDING].size(0)


def expected_shapes(sizes: Mapping[str, Any], rows: int) -> Shapes:
    """Return the shape of every weight of a BART model; the tied ones are ``EMBEDDING``."""
    width = sizes["encoder-embed-dim"]
    shapes: Shapes = {EMBEDDING: (rows, width)}
    for side, positions, attentions in (
        ("encoder", sizes["max-source-positions"], ("self_attn",)),
        ("decoder", sizes["max-target-positions"], ("self_attn", "encoder_attn")),
    ):
        shapes[f"{side}.embed_positions.weight"] = (positions + POSITION_OFFSET, width)
        shapes |= pair(f"{side}.layernorm_embedding", width)
        inner = sizes[f"{side}-ffn-embed-dim"]
        for number in range(sizes[f"{side}-layers"]):
            shapes |= layer(f"{side}.layers.{number}", width, inner, attentions)
    return shapes


def assemble(sizes: Mapping[str, Any], found: Mapping[str, Tensor], source: str) -> BartWeights:
    """Return the weights of a BART in float32, checked and with tied embeddings.

    Args:
        sizes: As in :class:`BartWeights`.
        found: Weights by fairseq's names.
        source: Where they are from, for messages.

    Raises:
        UserError: If embeddings that BART shares differ, or the weights are not BART's.
    """
    if EMBEDDING not in found:
        raise UserError(f"{source} has no {EMBEDDING}; is it a BART checkpoint?")
    found = share_embedding(found, TIED, source)
    shapes = expected_shapes(sizes, found[EMBEDDING].size(0))
    require_shapes(found, shapes, source, surplus="has, beyond BART, {}")
    state = {name: found[name].float().contiguous() for name in shapes}
    return BartWeights(sizes, state | dict.fromkeys(TIED, state[EMBEDDING]))


def share_embedding(
    found: Mapping[str, Tensor], names: Sequence[str], source: str
) -> dict[str, Tensor]:
    """Store the embedding once, as ``EMBEDDING``.

    Args:
        found: Weights; the embedding is stored under one of the names, or under several.
        names: The names.
        source: Where the weights are from, for messages.

    Returns:
        The weights; without an embedding, if there is none.

    Raises:
        UserError: If the matrices under these names are not all the same.
    """
    first, *others = [name for name in names if name in found] or [EMBEDDING]
    for name in others:
        if not torch.equal(found[name], found[first]):
            raise UserError(
                f"{source}: {name} is not the matrix {first}; this model does not share its "
                "embeddings as BART does"
            )
    rest = {name: value for name, value in found.items() if name not in names}
    return rest | ({EMBEDDING: found[first]} if first in found else {})


def random_weights(sizes: Mapping[str, Any], rows: int, *, seed: int) -> BartWeights:
    """Return the weights of an untrained BART with ``rows`` symbols, drawn as BERT's are.

    Matrices are drawn from N(0, 0.02²), biases are zero, and layer norms are the identity.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in expected_shapes(sizes, rows).items():
        if len(shape) > 1:
            state[name] = torch.empty(shape).normal_(std=0.02, generator=generator)
        else:
            norm = "norm" in name and name.endswith("weight")
            state[name] = torch.ones(shape) if norm else torch.zeros(shape)
    return assemble(sizes, state, "random weights")
