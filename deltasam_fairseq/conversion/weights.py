"""A BART model as names, shapes and values, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.errors import UserError

#: Rows of a position embedding before that of the first position: positions are
#: counted from the number of the padding symbol plus one, in both libraries.
POSITION_OFFSET = 2

_SHOWN = 3
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


def expected_shapes(sizes: Mapping[str, Any], rows: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of a BART model.

    Args:
        sizes: As in :class:`BartWeights`.
        rows: Number of symbols it embeds.

    Returns:
        Shapes by name, tied weights once (as ``encoder.embed_tokens.weight``).
    """
    return dict(_shapes(sizes, rows))


def _shapes(sizes: Mapping[str, Any], rows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = sizes["encoder-embed-dim"]
    yield EMBEDDING, (rows, width)
    for side, positions, attentions in (
        ("encoder", sizes["max-source-positions"], ("self_attn",)),
        ("decoder", sizes["max-target-positions"], ("self_attn", "encoder_attn")),
    ):
        yield f"{side}.embed_positions.weight", (positions + POSITION_OFFSET, width)
        yield from _pair(f"{side}.layernorm_embedding", (width,))
        inner = sizes[f"{side}-ffn-embed-dim"]
        for number in range(sizes[f"{side}-layers"]):
            layer = f"{side}.layers.{number}"
            for attention in attentions:
                for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
                    yield from _pair(f"{layer}.{attention}.{part}", (width, width))
                yield from _pair(f"{layer}.{attention}_layer_norm", (width,))
            yield from _pair(f"{layer}.fc1", (inner, width))
            yield from _pair(f"{layer}.fc2", (width, inner))
            yield from _pair(f"{layer}.final_layer_norm", (width,))


def _pair(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def assemble(sizes: Mapping[str, Any], found: Mapping[str, Tensor], source: str) -> BartWeights:
    """Check that a state is that of a BART model, and tie its embeddings.

    Args:
        sizes: As in :class:`BartWeights`.
        found: Weights by fairseq's names.
        source: Where they are from, for messages.

    Returns:
        The weights, in float32.

    Raises:
        UserError: If a weight is missing, too many, of another shape, not
            finite, or if embeddings that BART shares differ.
    """
    if EMBEDDING not in found:
        raise UserError(f"{source} has no {EMBEDDING}; is it a BART checkpoint?")
    embedding = found[EMBEDDING]
    for name in TIED[1:]:
        if name in found and not torch.equal(found[name], embedding):
            raise UserError(
                f"{source}: {name} is not the matrix {EMBEDDING}; this model does not share its "
                "embeddings as BART does (--share-all-embeddings)"
            )
    shapes = expected_shapes(sizes, embedding.size(0))
    missing = sorted(shapes.keys() - found.keys())
    surplus = sorted(found.keys() - shapes.keys() - set(TIED))
    wrong = [
        f"{name} is {tuple(found[name].shape)}, not {shape}"
        for name, shape in shapes.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    for complaint, names in (("lacks", missing), ("has, beyond BART,", surplus), ("", wrong)):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise UserError(f"{source} {complaint} {', '.join(names[:_SHOWN])}{more}")
    state = {name: found[name].float().contiguous() for name in shapes}
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise UserError(f"{source}: {name} has values that are not finite")
    state |= {name: state[EMBEDDING] for name in TIED}
    return BartWeights(sizes, state)


def random_weights(sizes: Mapping[str, Any], rows: int, *, seed: int) -> BartWeights:
    """Draw the weights of an untrained BART model, as BERT's are initialised.

    Args:
        sizes: As in :class:`BartWeights`.
        rows: Number of symbols to embed.
        seed: Of the draw.

    Returns:
        Matrices from N(0, 0.02²), no biases, and layer norms that do nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in expected_shapes(sizes, rows).items():
        if len(shape) > 1:
            found[name] = torch.empty(shape).normal_(std=0.02, generator=generator)
        else:
            norm = "norm" in name and name.endswith("weight")
            found[name] = torch.ones(shape) if norm else torch.zeros(shape)
    return assemble(sizes, found, "random weights")
