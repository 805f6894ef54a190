"""Which weights an encoder has, and checking that a file has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.conversion.encoder_names import EMBEDDING, ENCODER, HEAD, POSITIONS
from deltasam_fairseq.conversion.shapes import (
    POSITION_OFFSET,
    Shapes,
    layer,
    pair,
    require_shapes,
)
from deltasam_fairseq.data.encoder import BERT
from deltasam_fairseq.errors import UserError

_LM_HEAD = "encoder.lm_head"


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
        UserError: If heads do not divide the width, or weights are not those of the sizes.
    """
    if EMBEDDING not in found:
        raise UserError(f"{source} embeds no words; is it a {family}?")
    rows, width = found[EMBEDDING].shape
    if width % sizes["encoder-attention-heads"]:
        raise UserError(
            f"{source}: a width of {width} does not divide into "
            f"{sizes['encoder-attention-heads']} attention heads"
        )
    state, shapes = dict(found), _shapes(sizes, rows)
    if family == BERT:
        shapes[f"{ENCODER}.embed_segments.weight"] = (2, width)
        if any(name.startswith((HEAD, "pooler.")) for name in state):
            shapes |= pair("pooler", width, width)
    else:
        lm_head = pair(f"{_LM_HEAD}.dense", width, width) | pair(f"{_LM_HEAD}.layer_norm", width)
        lm_head[f"{_LM_HEAD}.bias"] = (rows,)
        state |= {name: torch.zeros(size) for name, size in lm_head.items() if name not in state}
        state[f"{_LM_HEAD}.weight"] = state[EMBEDDING]
        shapes |= {**lm_head, f"{_LM_HEAD}.weight": (rows, width)}
    classes = len(state.get(f"{HEAD}.out_proj.bias", ()))
    head = pair(f"{HEAD}.dense", width, width) | pair(f"{HEAD}.out_proj", classes, width)
    shapes |= {name: shape for name, shape in head.items() if name in state}
    surplus = "has {}, which config.json leaves no place for"
    require_shapes(state, shapes, source, surplus=surplus)
    return state


def _shapes(sizes: Mapping[str, Any], rows: int) -> Shapes:
    """Return the shapes that BERT and RoBERTa have in common."""
    width, inner = sizes["encoder-embed-dim"], sizes["encoder-ffn-embed-dim"]
    shapes: Shapes = {
        EMBEDDING: (rows, width),
        POSITIONS: (sizes["max-positions"] + POSITION_OFFSET, width),
    }
    shapes |= pair(f"{ENCODER}.layernorm_embedding", width)
    for number in range(sizes["encoder-layers"]):
        shapes |= layer(f"{ENCODER}.layers.{number}", width, inner)
    return shapes
