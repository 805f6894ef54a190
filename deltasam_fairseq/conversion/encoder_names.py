"""Names of BERT's and RoBERTa's weights in Hugging Face's files, and in fairseq's."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from deltasam_fairseq.conversion.folder import plain_names
from deltasam_fairseq.conversion.shapes import POSITION_OFFSET
from deltasam_fairseq.data.encoder import BERT
from deltasam_fairseq.errors import UserError

HEAD = "classification_heads.sentence_classification_head"
ENCODER = "encoder.sentence_encoder"
EMBEDDING = f"{ENCODER}.embed_tokens.weight"
POSITIONS = f"{ENCODER}.embed_positions.weight"

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
    """Rename weights to fairseq's names.

    Args:
        state: Of Hugging Face, from any class of the family.
        family: ``BERT`` or ``ROBERTA``.
        source: Where it is from, for messages.

    Returns:
        Weights by fairseq's names, in float32; positions have their offset, and the only
        segment of a RoBERTa is part of them, as fairseq's RoBERTa has no segments.

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
