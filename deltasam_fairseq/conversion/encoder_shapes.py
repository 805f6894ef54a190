"""Which weights an encoder has, and checking that a file has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.conversion.encoder_names import HEAD, POSITION_OFFSET
from deltasam_fairseq.data.encoder import BERT
from deltasam_fairseq.errors import UserError

EMBEDDING = "encoder.sentence_encoder.embed_tokens.weight"
POOLER = ("pooler.weight", "pooler.bias")
_LM_HEAD = "encoder.lm_head"
_SHOWN = 3


def complete(
    found: Mapping[str, Tensor], sizes: Mapping[str, Any], family: str, source: str
) -> dict[str, Tensor]:
    """Check the weights of an encoder and add those that no task uses.

    Args:
        found: By fairseq's names.
        sizes: One per name in :data:`~deltasam_fairseq.data.encoder.SIZES`.
        family: ``BERT`` or ``ROBERTA``.
        source: Where they are from, for messages.

    Returns:
        The weights as fairseq's model expects them. RoBERTa's head for masked words is
        zero where the file has none: classification leaves it alone. A BERT that was saved
        for masked words has no pooler; then there is no head on it either.

    Raises:
        UserError: If one is missing, has another shape or is not finite.
    """
    if EMBEDDING not in found:
        raise UserError(f"{source} embeds no words; is it a {family}?")
    rows, width = found[EMBEDDING].shape
    if width % sizes["encoder-attention-heads"]:
        raise UserError(
            f"{source}: a width of {width} does not divide into "
            f"{sizes['encoder-attention-heads']} attention heads"
        )
    state = dict(found)
    if family != BERT:
        head = _lm_head(rows, width)
        if f"{_LM_HEAD}.dense.weight" not in state:
            state |= {name: torch.zeros(shape) for name, shape in head.items()}
        state[f"{_LM_HEAD}.weight"] = state[EMBEDDING]
    shapes = dict(_shapes(sizes, rows, family))
    if family == BERT and not any(name.startswith((HEAD, "pooler.")) for name in state):
        shapes = {name: shape for name, shape in shapes.items() if name not in POOLER}
    shapes |= {name: shape for name, shape in _head(state, width) if name in state}
    missing = sorted(shapes.keys() - state.keys())
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise UserError(f"{source} lacks {', '.join(missing[:_SHOWN])}{more}")
    for name, value in state.items():
        if name in shapes and tuple(value.shape) != shapes[name]:
            raise UserError(f"{source}: {name} is {tuple(value.shape)}, not {shapes[name]}")
        if name not in shapes and not name.startswith((HEAD, _LM_HEAD)):
            raise UserError(f"{source} has {name}, which config.json leaves no place for")
        if not torch.isfinite(value).all():
            raise UserError(f"{source}: {name} has values that are not finite")
    return state


def _shapes(
    sizes: Mapping[str, Any], rows: int, family: str
) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner = sizes["encoder-embed-dim"], sizes["encoder-ffn-embed-dim"]
    base = "encoder.sentence_encoder"
    yield EMBEDDING, (rows, width)
    yield f"{base}.embed_positions.weight", (sizes["max-positions"] + POSITION_OFFSET, width)
    yield from _pair(f"{base}.layernorm_embedding", (width,))
    if family == BERT:
        yield f"{base}.embed_segments.weight", (2, width)
        yield from _pair("pooler", (width, width))
    for number in range(sizes["encoder-layers"]):
        layer = f"{base}.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _pair(f"{layer}.self_attn.{part}", (width, width))
        yield from _pair(f"{layer}.self_attn_layer_norm", (width,))
        yield from _pair(f"{layer}.fc1", (inner, width))
        yield from _pair(f"{layer}.fc2", (width, inner))
        yield from _pair(f"{layer}.final_layer_norm", (width,))


def _head(state: Mapping[str, Tensor], width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the shapes of a head for classes that was kept."""
    yield from _pair(f"{HEAD}.dense", (width, width))
    yield from _pair(f"{HEAD}.out_proj", (len(state.get(f"{HEAD}.out_proj.bias", ())), width))


def _lm_head(rows: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        **dict(_pair(f"{_LM_HEAD}.dense", (width, width))),
        **dict(_pair(f"{_LM_HEAD}.layer_norm", (width,))),
        f"{_LM_HEAD}.bias": (rows,),
    }


def _pair(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]
