"""BERT's and RoBERTa's weights: renamed from Hugging Face's to fairseq's, and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.conversion.folder import plain_names
from deltasam_fairseq.conversion.names import Names
from deltasam_fairseq.conversion.shapes import (
    POSITION_OFFSET,
    Shapes,
    layer,
    pair,
    require_shapes,
)
from deltasam_fairseq.data.encoder import BERT, ROBERTA
from deltasam_fairseq.errors import UserError

HEAD = "classification_heads.sentence_classification_head"
ENCODER = "encoder.sentence_encoder"
EMBEDDING = f"{ENCODER}.embed_tokens.weight"
POSITIONS = f"{ENCODER}.embed_positions.weight"
LM_HEAD = "encoder.lm_head"
_POSITIONS = "embeddings.position_embeddings.weight"
_SEGMENTS = "embeddings.token_type_embeddings.weight"

_COMMON = {
    "embeddings.word_embeddings": f"{ENCODER}.embed_tokens",
    "embeddings.position_embeddings": f"{ENCODER}.embed_positions",
    "embeddings.LayerNorm": f"{ENCODER}.layernorm_embedding",
    **{
        f"encoder.layer.{{}}.{theirs}": f"{ENCODER}.layers.{{}}.{ours}"
        for theirs, ours in {
            "attention.self.query": "self_attn.q_proj",
            "attention.self.key": "self_attn.k_proj",
            "attention.self.value": "self_attn.v_proj",
            "attention.output.dense": "self_attn.out_proj",
            "attention.output.LayerNorm": "self_attn_layer_norm",
            "intermediate.dense": "fc1",
            "output.dense": "fc2",
            "output.LayerNorm": "final_layer_norm",
        }.items()
    },
}
#: What has the same name in a model with a head and in one without.
NAMES = {
    BERT: Names(
        {
            **_COMMON,
            "embeddings.token_type_embeddings": f"{ENCODER}.embed_segments",
            "pooler.dense": "pooler",
        }
    ),
    ROBERTA: Names(_COMMON),
}
#: Heads, whose names stand beside that of the model.
HEAD_NAMES = {
    BERT: Names({"classifier": f"{HEAD}.out_proj"}),
    ROBERTA: Names(
        {
            # Of a model for another task, which is told by its class. fairseq's name stands
            # again below, for the way back.
            "classifier": f"{HEAD}.out_proj",
            "classifier.dense": f"{HEAD}.dense",
            "classifier.out_proj": f"{HEAD}.out_proj",
            "lm_head.dense": f"{LM_HEAD}.dense",
            "lm_head.layer_norm": f"{LM_HEAD}.layer_norm",
            "lm_head": LM_HEAD,
        }
    ),
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
    found, unknown = {}, []
    for name, value in plain.items():
        ours = NAMES[family].to_fairseq(name) or HEAD_NAMES[family].to_fairseq(name)
        if ours is not None:
            found[ours] = value.float()
        elif not _UNUSED.match(name):
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{source} has weights that no {family} of fairseq has: {', '.join(unknown[:3])}"
        )
    positions = found.get(POSITIONS)
    segments = plain.get(_SEGMENTS)
    if positions is not None and family == BERT:
        # BERT counts positions from 0; fairseq's table has more rows before the first one.
        nothing = positions.new_zeros(POSITION_OFFSET, positions.size(1))
        found[POSITIONS] = torch.cat([nothing, positions])
    elif positions is not None and segments is not None:
        found[POSITIONS] = positions + segments.float()[0]
    return found


def rename_back(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """Rename weights to what Hugging Face's models have; the inverse of :func:`rename`.

    Args:
        state: By fairseq's names, as :func:`complete` returns them.
        family: ``BERT`` or ``ROBERTA``.

    Returns:
        The weights by the names of a model with a head, if there is a head, and else of one
        without. The only segment of a RoBERTa is zero, and copies of the embedding are left out.
    """
    found, heads = {}, {}
    for name, value in state.items():
        theirs = NAMES[family].to_huggingface(name)
        if theirs is not None:
            found[theirs] = value
        elif name != f"{LM_HEAD}.weight":
            heads[HEAD_NAMES[family].to_huggingface(name) or name] = value
    if family == BERT:
        found[_POSITIONS] = found[_POSITIONS][POSITION_OFFSET:]
    else:
        found[_SEGMENTS] = torch.zeros(1, found[_POSITIONS].size(1))
    prefix = f"{family}." if heads else ""
    named = {f"{prefix}{name}": value for name, value in found.items()} | heads
    return {name: value.contiguous() for name, value in named.items()}


def complete(
    found: Mapping[str, Tensor],
    sizes: Mapping[str, Any],
    family: str,
    source: str,
    *,
    surplus: str = "has {}, which config.json leaves no place for",
) -> dict[str, Tensor]:
    """Check the weights of an encoder and add those that no task uses.

    Args:
        found: By fairseq's names.
        sizes: By the names of :data:`~deltasam_fairseq.data.encoder.SIZES`.
        family: ``BERT`` or ``ROBERTA``.
        source: Where they are from, for messages.
        surplus: The complaint about weights that the model does not have.

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
        lm_head = pair(f"{LM_HEAD}.dense", width, width) | pair(f"{LM_HEAD}.layer_norm", width)
        lm_head[f"{LM_HEAD}.bias"] = (rows,)
        state |= {name: torch.zeros(size) for name, size in lm_head.items() if name not in state}
        state[f"{LM_HEAD}.weight"] = state[EMBEDDING]
        shapes |= {**lm_head, f"{LM_HEAD}.weight": (rows, width)}
    classes = len(state.get(f"{HEAD}.out_proj.bias", ()))
    head = pair(f"{HEAD}.dense", width, width) | pair(f"{HEAD}.out_proj", classes, width)
    shapes |= {name: shape for name, shape in head.items() if name in state}
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
