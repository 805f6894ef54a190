"""Names of BERT's and RoBERTa's weights in Hugging Face's files, and in fairseq's."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from deltasam_fairseq.conversion.folder import plain_names
from deltasam_fairseq.data.encoder import BERT
from deltasam_fairseq.errors import UserError

#: Rows before that of the first position, as positions count from the padding's number plus one.
POSITION_OFFSET = 2
HEAD = "classification_heads.sentence_classification_head"

_ENCODER = "encoder.sentence_encoder"
_POSITIONS = f"{_ENCODER}.embed_positions.weight"
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
    "embeddings.word_embeddings.weight": f"{_ENCODER}.embed_tokens.weight",
    "embeddings.position_embeddings.weight": _POSITIONS,
    "embeddings.LayerNorm.weight": f"{_ENCODER}.layernorm_embedding.weight",
    "embeddings.LayerNorm.bias": f"{_ENCODER}.layernorm_embedding.bias",
}
# BERT's head; in a RoBERTa that of a model for another task, which is told by its class.
_HEAD = {
    "classifier.weight": f"{HEAD}.out_proj.weight",
    "classifier.bias": f"{HEAD}.out_proj.bias",
}
_ONLY_BERT = {
    "embeddings.token_type_embeddings.weight": f"{_ENCODER}.embed_segments.weight",
    "pooler.dense.weight": "pooler.weight",
    "pooler.dense.bias": "pooler.bias",
}
_ONLY_ROBERTA = {
    "classifier.dense.weight": f"{HEAD}.dense.weight",
    "classifier.dense.bias": f"{HEAD}.dense.bias",
    "classifier.out_proj.weight": f"{HEAD}.out_proj.weight",
    "classifier.out_proj.bias": f"{HEAD}.out_proj.bias",
    "lm_head.dense.weight": "encoder.lm_head.dense.weight",
    "lm_head.dense.bias": "encoder.lm_head.dense.bias",
    "lm_head.layer_norm.weight": "encoder.lm_head.layer_norm.weight",
    "lm_head.layer_norm.bias": "encoder.lm_head.layer_norm.bias",
    "lm_head.bias": "encoder.lm_head.bias",
}
# No weights; the heads of pretraining and of answering questions, which classification has
# no use for; copies of the embedding. In RoBERTa the pooler of some exports, which fairseq's
# RoBERTa does not have, and the segments, of which it has one.
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
            found[f"{_ENCODER}.layers.{number}.{_IN_LAYER[part]}.{kind}"] = value.float()
        elif not _UNUSED.match(name):
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{source} has weights that no {family} of fairseq has: {', '.join(unknown[:3])}"
        )
    if family == BERT:
        _shift_positions(found)
    else:
        _fold_segments(found, plain)
    return found


def _shift_positions(found: dict[str, Tensor]) -> None:
    """Give BERT's positions the two rows that fairseq's have before the first one."""
    if _POSITIONS in found:
        positions = found[_POSITIONS]
        nothing = positions.new_zeros(POSITION_OFFSET, positions.size(1))
        found[_POSITIONS] = torch.cat([nothing, positions])


def _fold_segments(found: dict[str, Tensor], plain: Mapping[str, Tensor]) -> None:
    segments = plain.get("embeddings.token_type_embeddings.weight")
    if segments is not None and _POSITIONS in found:
        found[_POSITIONS] = found[_POSITIONS] + segments.float()[0]
