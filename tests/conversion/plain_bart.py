"""BART's forward pass, slow and plain."""

from __future__ import annotations

import math

from torch import Tensor, full_like
from torch.nn.functional import gelu, layer_norm, linear

from tests.support.bart_toys import TINY_CONFIG


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
        scores += full_like(scores, -math.inf).triu(1)
    mixed = (scores.softmax(-1) @ values).transpose(0, 1).reshape(len(x), -1)
    return _norm(state, f"{name}_layer_norm", x + _affine(state, f"{name}.out_proj", mixed))


def _feed_forward(state: dict[str, Tensor], layer: str, x: Tensor) -> Tensor:
    inner = gelu(_affine(state, f"{layer}.fc1", x))
    return _norm(state, f"{layer}.final_layer_norm", x + _affine(state, f"{layer}.fc2", inner))


def _affine(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])
