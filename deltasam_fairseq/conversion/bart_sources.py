"""BARTs in the files of fairseq and of Hugging Face."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.conversion.bart_weights import (
    EMBEDDING,
    TIED,
    BartWeights,
    assemble,
    share_embedding,
)
from deltasam_fairseq.conversion.checkpoint import load_model, save, weights_of
from deltasam_fairseq.conversion.folder import CONFIG, HuggingFaceFolder, plain_names
from deltasam_fairseq.conversion.shapes import POSITION_OFFSET
from deltasam_fairseq.data.bart import ARCHITECTURES, SIZES
from deltasam_fairseq.errors import UserError

_HEADS = "classification_heads."
#: Settings under which a transformer of fairseq is a BART, and their values.
_BART: Mapping[str, object] = {
    "no_scale_embedding": True,
    "layernorm_embedding": True,
    "encoder_normalize_before": False,
    "decoder_normalize_before": False,
    "encoder_learned_pos": True,
    "decoder_learned_pos": True,
    "share_all_embeddings": True,
    "share_decoder_input_output_embed": True,
}
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


def read_checkpoint(path: Path) -> BartWeights:
    """Return the weights of a BART that fairseq wrote, of any version.

    Classification heads and the state of the optimizer are left out. A file that cannot be read,
    or is not a BART model, ends in a :class:`UserError`.
    """
    content, settings = load_model(path, "BART")
    state = {
        name: value for name, value in weights_of(content).items() if not name.startswith(_HEADS)
    }
    return from_fairseq(state, settings, str(path))


def from_fairseq(
    state: Mapping[str, Tensor], settings: Mapping[str, Any], source: str
) -> BartWeights:
    """Return the weights of a BART from those of a checkpoint of fairseq.

    Args:
        state: The weights.
        settings: How the model was built.
        source: Where they are from, for messages.

    Raises:
        UserError: If they are not those of a BART.
    """
    for name, value in _BART.items():
        if settings.get(name, value) != value:
            raise UserError(f"{source}: {name} is {settings[name]!r}; a BART model has {value!r}")
    sizes = {}
    for flag in SIZES:
        default = ARCHITECTURES["bart_large"][flag]
        sizes[flag] = settings.get(flag.replace("-", "_"), default)
    # Checkpoints of before fairseq 0.9 name one number of positions for both sides.
    for side, flag in (("encoder", "max-source-positions"), ("decoder", "max-target-positions")):
        table = state.get(f"{side}.embed_positions.weight")
        if table is not None:
            sizes[flag] = table.size(0) - POSITION_OFFSET
    return assemble(sizes, state, source)


def write_checkpoint(weights: BartWeights, path: Path) -> None:
    """Write a checkpoint that ``fairseq-train --restore-file`` and fairseq's hub take."""
    settings = {flag.replace("-", "_"): value for flag, value in weights.sizes.items()}
    settings["decoder_embed_dim"] = settings["encoder_embed_dim"]
    args = argparse.Namespace(
        arch="bart_large",
        task="translation",
        source_lang="source",
        target_lang="target",
        criterion="label_smoothed_cross_entropy",
        **_BART,
        **settings,
    )
    save(args, weights.state, path, criterion="LabelSmoothedCrossEntropyCriterion")


def read_huggingface(path: Path) -> BartWeights:
    """Return the weights of a BART of any class that ``save_pretrained`` wrote.

    The ids of its tokenizer are the numbers of fairseq's dictionary, so rows keep
    their places; heads are left out.

    Raises:
        UserError: If a file is missing, if safetensors is not installed, or if
            the model is not one that fairseq's BART can hold.
    """
    folder, source = HuggingFaceFolder.open(path), str(path)
    folder.require(_FIXED, "BART")
    anchor = "encoder.embed_positions.weight"
    state = plain_names(folder.weights(), anchor=anchor, base="model", source=source)
    bias = state.pop("final_logits_bias", torch.zeros(1))
    if torch.count_nonzero(bias):
        raise UserError(
            f"{path}: final_logits_bias is not zero (up to {bias.abs().max().item():.3g}); "
            "fairseq's BART has no bias at its output, so the converted model would give other "
            "logits"
        )
    state = {name: value for name, value in state.items() if not _UNUSED.match(name)}
    activation = folder.config.get("activation_function", "gelu")
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"{path / CONFIG}: activation_function {activation!r} is not among "
            f"{', '.join(_ACTIVATIONS)}"
        )
    sizes: dict[str, Any] = {flag: folder.size(name) for flag, name in _SIZES.items()}
    sizes["activation-fn"] = _ACTIVATIONS[activation]
    weights = assemble(sizes, share_embedding(state, _SHARED, source), source)
    if weights.rows != folder.size("vocab_size"):
        raise UserError(
            f"{path}: vocab_size is {folder.size('vocab_size')}, but the weights embed "
            f"{weights.rows}"
        )
    return weights


def to_huggingface(weights: BartWeights, source: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a BART as Hugging Face's ``BartForConditionalGeneration`` has it.

    Args:
        weights: Sizes and weights.
        source: Where they are from, for messages.

    Returns:
        What ``config.json`` says of it, and its weights; the inverse of :func:`read_huggingface`.

    Raises:
        UserError: If its sizes or its activation cannot be said there.
    """
    config: dict[str, Any] = dict(_FIXED)
    for flag, name in _SIZES.items():
        value = weights.sizes[flag]
        if config.setdefault(name, value) != value:
            raise UserError(
                f"{source}: {flag} is {value}, where {name} of Hugging Face's BART is "
                f"{config[name]} for both sides"
            )
    activations = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    activation = weights.sizes["activation-fn"]
    if activation not in activations:
        raise UserError(
            f"{source}: activation_fn {activation!r} is not among {', '.join(activations)}"
        )
    config |= {"activation_function": activations[activation], "vocab_size": weights.rows}
    plain = {name: value for name, value in weights.state.items() if name not in TIED}
    plain[_SHARED[0]] = weights.state[EMBEDDING]
    state = {f"model.{name}": value.contiguous() for name, value in plain.items()}
    return config, {**state, "final_logits_bias": torch.zeros(1, weights.rows)}
