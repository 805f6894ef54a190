"""Small BERT and RoBERTa folders as Hugging Face writes them, without its library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WORDS = ["the", "cat", "dog", "sat", "ran", "a", "no", "yes", "mat", "##s", "far", "."]
TOKENS = ["[PAD]", "[unused0]", *WORDS[:3], "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[3:]]
#: Every size differs from every other, so that a mistaken one shows.
CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "num_hidden_layers": 2,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_attention_heads": 3,
    "max_position_embeddings": 26,
    "type_vocab_size": 2,
    "vocab_size": len(TOKENS),
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
#: Flags of fairseq for a model of that size.
SIZE_FLAGS = (
    *("--encoder-layers", "2", "--encoder-embed-dim", "12", "--encoder-ffn-embed-dim", "20"),
    *("--encoder-attention-heads", "3", "--max-positions", "26"),
)


def bert_state(seed: int = 3, classes: int | None = None) -> dict[str, Tensor]:
    """Draw the weights of a BERT under Hugging Face's names, none of them zero or one."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.empty(shape).normal_(std=0.3, generator=generator)

    width, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(TOKENS), width),
        "embeddings.position_embeddings.weight": (CONFIG["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    pairs: dict[str, tuple[int, ...]] = {
        "embeddings.LayerNorm": (width,),
        "pooler.dense": (width, width),
    }
    for number in range(CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        pairs |= {f"{layer}.attention.self.{p}": (width, width) for p in ("query", "key", "value")}
        pairs |= {
            f"{layer}.attention.output.dense": (width, width),
            f"{layer}.attention.output.LayerNorm": (width,),
            f"{layer}.intermediate.dense": (inner, width),
            f"{layer}.output.dense": (width, inner),
            f"{layer}.output.LayerNorm": (width,),
        }
    if classes:
        pairs["classifier"] = (classes, width)
    for name, shape in pairs.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    prefix = "bert." if classes else ""
    return {
        ("" if name.startswith("classifier") else prefix) + name: draw(*shape)
        for name, shape in shapes.items()
    }


def write_bert(folder: Path, state: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    """Write a folder as ``save_pretrained`` of model and tokenizer do."""
    import safetensors.torch

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in TOKENS))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    safetensors.torch.save_file(state or bert_state(), folder / "model.safetensors")
    return folder


def write_tables(folder: Path, *, rows: int = 24) -> Path:
    """Write a task like RTE, whose label is whether both sentences have the same animal."""
    table = folder / "RTE"
    table.mkdir(parents=True)
    header = "index\tsentence1\tsentence2"
    for name, count in (("train", rows), ("dev", 8), ("test", 3)):
        lines = [header + ("" if name == "test" else "\tlabel")]
        for index in range(count):
            first, second = ("cat", "dog")[index % 2], ("cat", "dog")[index // 2 % 2]
            cells = [str(index), f"The {first} sat .", f"A {second} ran far ."]
            if name != "test":
                cells.append("entailment" if first == second else "not_entailment")
            lines.append("\t".join(cells))
        (table / f"{name}.tsv").write_text("".join(f"{line}\n" for line in lines))
    return folder
