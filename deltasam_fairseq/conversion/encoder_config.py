"""What config.json says of a BERT or a RoBERTa that fairseq can hold."""

from __future__ import annotations

from collections.abc import Mapping

from deltasam_fairseq.data.encoder import BERT, ROBERTA

#: Names of fairseq's flags and of the entries of config.json. The positions of a RoBERTa are more
#: there, by those before the first one.
CONFIG_SIZES = {
    "encoder-layers": "num_hidden_layers",
    "encoder-embed-dim": "hidden_size",
    "encoder-ffn-embed-dim": "intermediate_size",
    "encoder-attention-heads": "num_attention_heads",
    "max-positions": "max_position_embeddings",
}
_COMMON = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
#: What config.json must say, if it says anything.
FIXED: Mapping[str, Mapping[str, object]] = {
    BERT: {**_COMMON, "layer_norm_eps": 1e-12, "type_vocab_size": 2},
    ROBERTA: {**_COMMON, "layer_norm_eps": 1e-5, "type_vocab_size": 1, "pad_token_id": 1},
}
