"""Names of BERT's and RoBERTa's weights in Hugging Face's files, and in fairseq's."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from deltasam_fairseq.data.encoder import BERT
from deltasam_fairseq.errors import UserError

#: Rows before that of the first position, as positions count from the padding's number plus one.
POSITION_OFFSET = 2
HEAD = "classification_heads.sentence_classification_head"

_ENCODER = "encoder.sentence_encoder"
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
    "embeddings.position_embeddings.weight": f"{_ENCODER}.embed_positions.weight",
    "embeddings.LayerNorm.weight": f"{_ENCODER}.layernorm_embedding.weight",
    "embeddings.LayerNorm.bias": f"{_ENCODER}.layernorm_embedding.bias",
}
_ONLY_BERT = {
    "embeddings.token_type_embeddings.weight": f"{_ENCODER}.embed_segments.weight",
    "pooler.dense.weight": "pooler.weight",
    "pooler.dense.bias": "pooler.bias",
    "classifier.weight": f"{HEAD}.out_proj.weight",
    "classifier.bias": f"{HEAD}.out_proj.bias",
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
# No weights; the heads of pretraining that classification has no use for; copies of the
# embedding. In RoBERTa the pooler of some exports, which fairseq's RoBERTa does not have,
# and the segments, of which it has one.
_UNUSED = re.compile(
    r".*position_ids$|cls\.|lm_head\.decoder\.|lm_head\.weight$|embeddings\.token_type_embeddings\."
    r"|pooler\."
)


def rename(state: Mapping[str, Tensor], family: str, source: str) -> dict[str, Tensor]:
    """Rename weights to fairseq's names.

    Args:
        state: Of Hugging Face.
        family: ``BERT`` or ``ROBERTA``.
        source: Where it is from, for messages.

    Returns:
        Weights by fairseq's names, in float32; positions have their offset.

    Raises:
        UserError: If there is a weight that has no place.
    """
    names = {**_EMBEDDINGS, **(_ONLY_BERT if family == BERT else _ONLY_ROBERTA)}
    found, unknown = {}, []
    for full, value in state.items():
        name = full.removeprefix("bert.").removeprefix("roberta.")
        if name in names:
            found[names[name]] = value.float()
        elif match := _LAYER.match(name):
            number, part, kind = match.groups()
            if part not in _IN_LAYER:
                unknown.append(full)
                continue
            found[f"{_ENCODER}.layers.{number}.{_IN_LAYER[part]}.{kind}"] = value.float()
        elif not _UNUSED.match(name):
            unknown.append(full)
    if unknown:
        raise UserError(
            f"{source} has weights that no {family} of fairseq has: {', '.join(unknown[:3])}"
        )
    _shift_positions(found, family)
    return found


def _shift_positions(found: dict[str, Tensor], family: str) -> None:
    """Give BERT's positions the two rows that fairseq's have before the first one."""
    name = f"{_ENCODER}.embed_positions.weight"
    if family == BERT and name in found:
        positions = found[name]
        nothing = positions.new_zeros(POSITION_OFFSET, positions.size(1))
        found[name] = torch.cat([nothing, positions])


def fold_segments(found: dict[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Add RoBERTa's only segment to its positions, as fairseq's RoBERTa has no segments.

    Args:
        found: Renamed weights; changed in place.
        state: Of Hugging Face.
    """
    for name, value in state.items():
        if name.endswith("embeddings.token_type_embeddings.weight"):
            positions = f"{_ENCODER}.embed_positions.weight"
            found[positions] = found[positions] + value.float()[0]
