"""BERT's and RoBERTa's weights: renamed from Hugging Face's to fairseq's, and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.conversion.folder import plain_names
from deltasam_fairseq.conversion.shapes import (
    POSITION_OFFSET,
    Shapes,
    layer,
    pair,
    require_shapes,
)
from deltasam_fairseq.data.encoder import BERT
from deltasam_fairseq.errors import UserError

HEAD = "classification_heads.sentence_classification_head"
ENCODER = "encoder.sentence_encoder"
EMBEDDING = f"{ENCODER}.embed_tokens.weight"
POSITIONS = f"{ENCODER}.embed_positions.weight"
_LM_HEAD = "encoder.lm_head"

_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)$")
_IN_LAYER = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
}
_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": EMBEDDING,
    "embeddings.position_embeddings.weight": POSITIONS,
    "embeddings.LayerNorm.weight": f"{ENCODER}.layernorm_embedding.weight",
    "embeddings.LayerNorm.bias": f"{ENCODER}.layernorm_embedding.bias",
}
# BERT's head; in a RoBERTa that of a model for another task, which is told by its class.
_HEAD = {
    "classifier.weight": f"{HEAD}.out_proj.weight",
    "classifier.bias": f"{HEAD}.out_proj.bias",
}
_ONLY_BERT = {
    "embeddings.token_type_embeddings.weight": f"{ENCODER}.embed_segments.weight",
    "pooler.dense.weight": "pooler.weight",
    "pooler.dense.bias": "pooler.bias",
}
_ONLY_ROBERTA = {
    f"{theirs}.{part}": f"{ours}.{part}"
    for theirs, ours, parts in (
        ("classifier.dense", f"{HEAD}.dense", ("weight", "bias")),
        ("classifier.out_proj", f"{HEAD}.out_proj", ("weight", "bias")),
        ("lm_head.dense", "encoder.lm_head.dense", ("weight", "bias")),
        ("lm_head.layer_norm", "encoder.lm_head.layer_norm", ("weight", "bias")),
        ("lm_head", "encoder.lm_head", ("bias",)),
    )
    for part in parts
}
# Buffers; the heads of pretraining and of answering questions, which classification does not
# use; copies of the embedding. In RoBERTa the pooler of some exports, which fairseq's RoBERTa
# does not have, and the segments, of which it has one.
_UNUSED = re.compile(
    r"embeddings\.(position_ids|token_type_ids)$|cls\.|qa_outputs\.|lm_head\.decoder\."
    r"|lm_head\.weight$|embeddings\.token_type_embeddings\.|pooler\."
)


def rename(state: Mapping[str, Tensor], family: str, source: str) -> dict[str, Tensor]:
    """Rename weights of any class of Hugging Face's to fairseq's names.

    Returns:
        The weights in float32; positions have their offset, and the only segment of a
        RoBERTa is part of them, as fairseq's RoBERTa has no segments.

    Raises:
        UserError: If there is a weight that has no place.
    """
    anchor = "embeddings.word_embeddings.weight"
    plain = plain_names(state, anchor=anchor, base=family, source=source)
    names = {**_EMBEDDINGS, **_HEAD, **(_ONLY_BERT if family == BERT else _ONLY_ROBERTA)}
    found, unknown = {}, []
    for name, value in plain.items():
        match = _LAYER.match(name)
        if name in names:
            found[names[name]] = value.float()
        elif match and match.group(2) in _IN_LAYER:
            number, part, kind = match.groups()
            found[f"{ENCODER}.layers.{number}.{_IN_LAYER[part]}.{kind}"] = value.float()
        elif not _UNUSED.match(name):
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{source} has weights that no {family} of fairseq has: {', '.join(unknown[:3])}"
        )
    positions = found.get(POSITIONS)
    segments = plain.get("embeddings.token_type_embeddings.weight")
    if positions is not None and family == BERT:
        # BERT counts positions from 0; fairseq's table has more rows before the first one.
        nothing = positions.new_zeros(POSITION_OFFSET, positions.size(1))
        found[POSITIONS] = torch.cat([nothing, positions])
    elif positions is not None and segments is not None:
        found[POSITIONS] = positions + segments.float()[0]
    return found


def complete(
    found: Mapping[str, Tensor], sizes: Mapping[str, Any], family: str, source: str
) -> dict[str, Tensor]:
    """Check the weights of an encoder and add those that no task uses.

    Args:
        found: By fairseq's names.
        sizes: By the names of :data:`~deltasam_fairseq.data.encoder.SIZES`.
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
    require_shapes(state, shapes, source, surplus="has {}, which config.json leaves no place for")
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
