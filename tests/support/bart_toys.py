"""Small BART models of both kinds, and a forward pass that is slow and plain."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from deltasam_fairseq.conversion.bart_weights import random_weights
from deltasam_fairseq.data.bart import SIZES

WORDS = 40
#: Every size differs from every other, so that a mistaken one shows.
TINY = dict(zip(SIZES, (2, 3, 12, 20, 28, 3, 2, 18, 18, "gelu"), strict=True))
TINY_CONFIG: dict[str, Any] = {
    "model_type": "bart",
    "encoder_layers": 2,
    "decoder_layers": 3,
    "d_model": 12,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 28,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 18,
    "vocab_size": WORDS + 5,
    "activation_function": "gelu",
    "scale_embedding": False,
}


def write_dictionary(path: Path, words: int = WORDS) -> Path:
    """Write a dictionary of fairseq whose words are numbers, as GPT-2's are."""
    path.write_text("".join(f"{number} {words - number}\n" for number in range(words)))
    return path


def noisy_state(rows: int = WORDS + 5) -> dict[str, Tensor]:
    """Return weights under fairseq's names, none of them zero or one."""
    weights = random_weights(TINY, rows, seed=3)
    generator = torch.Generator().manual_seed(4)
    noisy = {
        name: value + torch.empty_like(value).normal_(std=0.3, generator=generator)
        for name, value in weights.state.items()
    }
    for name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        noisy[name] = noisy["encoder.embed_tokens.weight"]
    return noisy


def hugging_face_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights to what ``save_pretrained`` writes for BartForConditionalGeneration."""
    renamed = {
        f"model.{name}": value.clone()
        for name, value in state.items()
        if "embed_tokens" not in name and "output_projection" not in name
    }
    renamed["model.shared.weight"] = state["encoder.embed_tokens.weight"].clone()
    renamed["final_logits_bias"] = torch.zeros(1, len(state["encoder.embed_tokens.weight"]))
    return renamed


def write_hugging_face(folder: Path, state: dict[str, Tensor], **changes: Any) -> Path:
    """Write a folder as ``save_pretrained`` does."""
    import safetensors.torch

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**TINY_CONFIG, **changes}))
    safetensors.torch.save_file(state, folder / "model.safetensors")
    return folder


def reference_logits(state: dict[str, Tensor], source: Tensor, target: Tensor) -> Tensor:
    """Compute a BART model's logits for one sentence, step by step, from Hugging Face's names.

    Args:
        state: Of :func:`hugging_face_state`.
        source: Tokens, shape ``(S,)``.
        target: What the decoder sees, shape ``(T,)``.

    Returns:
        Shape ``(T, V)``.
    """
    encoded = _embed(state, "encoder", source)
    for number in range(TINY_CONFIG["encoder_layers"]):
        layer = f"model.encoder.layers.{number}"
        encoded = _attend(state, f"{layer}.self_attn", encoded, encoded, heads=3)
        encoded = _feed_forward(state, layer, encoded)
    decoded = _embed(state, "decoder", target)
    for number in range(TINY_CONFIG["decoder_layers"]):
        layer = f"model.decoder.layers.{number}"
        decoded = _attend(state, f"{layer}.self_attn", decoded, decoded, heads=2, causal=True)
        decoded = _attend(state, f"{layer}.encoder_attn", decoded, encoded, heads=2)
        decoded = _feed_forward(state, layer, decoded)
    return decoded @ state["model.shared.weight"].T + state["final_logits_bias"]


def _embed(state: dict[str, Tensor], side: str, tokens: Tensor) -> Tensor:
    positions = state[f"model.{side}.embed_positions.weight"][2 : 2 + len(tokens)]
    summed = state["model.shared.weight"][tokens] + positions
    return _norm(state, f"model.{side}.layernorm_embedding", summed)


def _attend(
    state: dict[str, Tensor], name: str, x: Tensor, y: Tensor, *, heads: int, causal: bool = False
) -> Tensor:
    queries, keys, values = (
        _affine(state, f"{name}.{part}_proj", given).view(len(given), heads, -1).transpose(0, 1)
        for part, given in (("q", x), ("k", y), ("v", y))
    )
    scores = queries @ keys.transpose(1, 2) / math.sqrt(queries.size(-1))
    if causal:
        scores += torch.full_like(scores, -math.inf).triu(1)
    mixed = (scores.softmax(-1) @ values).transpose(0, 1).reshape(len(x), -1)
    return _norm(state, f"{name}_layer_norm", x + _affine(state, f"{name}.out_proj", mixed))


def _feed_forward(state: dict[str, Tensor], layer: str, x: Tensor) -> Tensor:
    inner = gelu(_affine(state, f"{layer}.fc1", x))
    return _norm(state, f"{layer}.final_layer_norm", x + _affine(state, f"{layer}.fc2", inner))


def _affine(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])
