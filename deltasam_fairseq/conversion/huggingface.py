"""Reading a BART folder of Hugging Face."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from deltasam_fairseq.conversion.folder import (
    CONFIG,
    load_weights,
    plain_names,
    read_config,
    require_entries,
    size_of,
)
from deltasam_fairseq.conversion.weights import EMBEDDING, BartWeights, assemble, share_embedding
from deltasam_fairseq.errors import UserError

#: Names of fairseq's flags and of the entries of config.json.
_SIZES = {
    "encoder-layers": "encoder_layers",
    "decoder-layers": "decoder_layers",
    "encoder-embed-dim": "d_model",
    "encoder-ffn-embed-dim": "encoder_ffn_dim",
    "decoder-ffn-embed-dim": "decoder_ffn_dim",
    "encoder-attention-heads": "encoder_attention_heads",
    "decoder-attention-heads": "decoder_attention_heads",
    "max-source-positions": "max_position_embeddings",
    "max-target-positions": "max_position_embeddings",
}
_ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "gelu_new": "gelu_accurate"}
#: Entries that must have a certain value, if they are there.
_FIXED = {
    "model_type": "bart",
    "scale_embedding": False,
    "normalize_before": False,
    "add_final_layer_norm": False,
    "normalize_embedding": True,
    "tie_word_embeddings": True,
}
#: Names of one matrix; which of them a file has depends on who wrote it, and when.
_SHARED = ("shared.weight", EMBEDDING, "decoder.embed_tokens.weight", "lm_head.weight")
# Heads of other tasks, and what files had of fairseq's version.
_UNUSED = re.compile(r"classification_head\.|qa_outputs\.|(encoder|decoder)\.version$")


def read_huggingface(folder: Path) -> BartWeights:
    """Read a BART model that ``save_pretrained`` wrote.

    The ids of its tokenizer are the numbers of fairseq's dictionary, so rows keep
    their places; heads are left out.

    Args:
        folder: Holds ``config.json`` and the weights of any class of BART models.

    Returns:
        Its weights.

    Raises:
        UserError: If a file is missing, if safetensors is not installed, or if
            the model is not one that fairseq's BART can hold.
    """
    config = read_config(folder)
    require_entries(config, _FIXED, "BART", folder)
    state = plain_names(
        load_weights(folder),
        anchor="encoder.embed_positions.weight",
        base="model",
        source=str(folder),
    )
    _require_no_bias(state.pop("final_logits_bias", None), folder)
    state = {name: value for name, value in state.items() if not _UNUSED.match(name)}
    found = share_embedding(state, _SHARED, str(folder))
    sizes = {flag: size_of(config, name, folder) for flag, name in _SIZES.items()}
    activation = config.get("activation_function", "gelu")
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"{folder / CONFIG}: activation_function {activation!r} is not among "
            f"{', '.join(_ACTIVATIONS)}"
        )
    weights = assemble({**sizes, "activation-fn": _ACTIVATIONS[activation]}, found, str(folder))
    if weights.rows != size_of(config, "vocab_size", folder):
        raise UserError(
            f"{folder}: vocab_size is {config['vocab_size']}, but the weights embed {weights.rows}"
        )
    return weights


def _require_no_bias(bias: Tensor | None, folder: Path) -> None:
    """Refuse a bias of the output that is not zero: fairseq's BART has none."""
    if bias is not None and torch.count_nonzero(bias):
        largest = bias.abs().max().item()
        raise UserError(
            f"{folder}: final_logits_bias is not zero (up to {largest:.3g}); fairseq's BART has no "
            "bias at its output, so the converted model would give other logits"
        )
