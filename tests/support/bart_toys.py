"""Small BART models of both kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
