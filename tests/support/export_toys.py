"""A small byte-pair encoding, and models in it under Hugging Face's names, without its library."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.encoder_toys import CONFIG, bert_state

#: GPT-2 writes a space as Ġ. In the order in which they are joined.
MERGES = (("t", "h"), ("th", "e"), ("Ġ", "c"), ("Ġc", "at"), ("a", "t"), ("Ġ", "the"))
_LETTERS = (*string.ascii_letters, *string.punctuation, *string.digits, "Ġ")
BPE = [*_LETTERS, *dict.fromkeys("".join(pair) for pair in MERGES)]
#: Two pairs and a single sentence, in letters that the encoding has.
TEXTS = (("the cat sat", "a Dog ran!"), ("no", "the  cat"), ("the dog sat far.", ""))


def write_gpt2(folder: Path) -> Path:
    """Write ``encoder.json``, ``vocab.bpe`` and ``dict.txt``, whose order is another one."""
    folder.mkdir()
    encoder = {token: number for number, token in enumerate(BPE)}
    (folder / "encoder.json").write_text(json.dumps(encoder))
    merges = "".join(f"{first} {second}\n" for first, second in MERGES)
    (folder / "vocab.bpe").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    numbers = sorted(range(len(BPE)), key=lambda number: (number * 7) % len(BPE))
    (folder / "dict.txt").write_text("".join(f"{number} 1\n" for number in numbers))
    return folder


def rows(*, mask: bool = True) -> int:
    """Return how many symbols a model of that encoding embeds."""
    return len(BPE) + 4 + mask


def roberta_state(classes: int | None = None) -> dict[str, Tensor]:
    """Draw a RoBERTa with a head for classes, or with that for masked words."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.empty(shape).normal_(std=0.3, generator=generator)

    width = CONFIG["hidden_size"]
    state = {n: v for n, v in bert_state().items() if not n.startswith("pooler.")}
    state["embeddings.word_embeddings.weight"] = draw(rows(), width)
    state["embeddings.token_type_embeddings.weight"] = torch.zeros(1, width)
    heads = {"lm_head.dense": (width, width), "lm_head.layer_norm": (width,)}
    if classes:
        heads = {"classifier.dense": (width, width), "classifier.out_proj": (classes, width)}
    found = {f"roberta.{name}": value for name, value in state.items()}
    for name, shape in heads.items():
        found |= {f"{name}.weight": draw(*shape), f"{name}.bias": draw(shape[0])}
    return found if classes else {**found, "lm_head.bias": draw(rows())}


def roberta_config(**changes: Any) -> dict[str, Any]:
    """Return what ``config.json`` says of it."""
    fixed = {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
    own = {"model_type": "roberta", "vocab_size": rows()}
    return {**CONFIG, **fixed, **own, **changes}
