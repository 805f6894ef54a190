"""Reading a BART folder of Hugging Face: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.conversion.weights import BartWeights, assemble
from deltasam_fairseq.errors import UserError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

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
_SHARED = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def read_huggingface(folder: Path) -> BartWeights:
    """Read a BART model that ``save_pretrained`` wrote.

    The ids of its tokenizer are the numbers of fairseq's dictionary, so rows keep
    their places; heads for classification are left out.

    Args:
        folder: Holds ``config.json`` and ``model.safetensors``.

    Returns:
        Its weights.

    Raises:
        UserError: If a file is missing, if safetensors is not installed, or if
            the model is not one that fairseq's BART can hold.
    """
    config = _config(folder)
    state = load_safetensors(folder / WEIGHTS)
    state = {name.removeprefix("model."): value for name, value in state.items()}
    _require_no_bias(state.pop("final_logits_bias", None), folder)
    found = {n: v for n, v in state.items() if n not in {*_SHARED, "lm_head.weight"}}
    found = {n: v for n, v in found.items() if not n.startswith("classification_head.")}
    for name in _SHARED:
        if name in state:
            found.setdefault("encoder.embed_tokens.weight", state[name])
            if name.startswith("decoder"):
                found[name] = state[name]
    if "lm_head.weight" in state:
        found["decoder.output_projection.weight"] = state["lm_head.weight"]
    sizes = {flag: entry(config, name, folder) for flag, name in _SIZES.items()}
    activation = config.get("activation_function", "gelu")
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"{folder / CONFIG}: activation_function {activation!r} is not among "
            f"{', '.join(_ACTIVATIONS)}"
        )
    weights = assemble({**sizes, "activation-fn": _ACTIVATIONS[activation]}, found, str(folder))
    if weights.rows != entry(config, "vocab_size", folder):
        raise UserError(
            f"{folder}: vocab_size is {config['vocab_size']}, but {WEIGHTS} embeds {weights.rows}"
        )
    return weights


def require_same_order(folder: Path, dictionary: Path, encoder_json: Path) -> bool:
    """Check that a tokenizer numbers its tokens as a dictionary of fairseq does.

    Args:
        folder: Of Hugging Face; its ``vocab.json`` maps tokens to rows.
        dictionary: fairseq's ``dict.txt``; the first word of each line is a number
            of ``encoder.json``, and stands for row 4 and so on.
        encoder_json: Maps tokens to such numbers.

    Returns:
        False if there is no ``vocab.json`` to compare.

    Raises:
        UserError: If a token has another number.
    """
    path = folder / "vocab.json"
    if not path.is_file():
        return False
    rows = json.loads(path.read_text(encoding="utf-8"))
    tokens = {str(n): t for t, n in json.loads(encoder_json.read_text(encoding="utf-8")).items()}
    words = (line.split()[0] for line in dictionary.read_text(encoding="utf-8").splitlines())
    expected = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    expected |= {tokens[word]: row for row, word in enumerate(words, 4) if word in tokens}
    for token, row in expected.items():
        if rows.get(token) != row:
            raise UserError(
                f"{path} gives {token!r} the number {rows.get(token)}, but in {dictionary} it has "
                f"{row}; give the dictionary that this model was trained with"
            )
    return True


def _config(folder: Path) -> dict[str, Any]:
    config = read_config(folder)
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            raise UserError(
                f"{folder / CONFIG}: {name} is {config[name]!r}; fairseq's BART needs {value!r}"
            )
    return config


def read_config(folder: Path) -> dict[str, Any]:
    """Read how a model is built.

    Args:
        folder: Of Hugging Face.

    Returns:
        The content of ``config.json``.

    Raises:
        UserError: If it is missing or no JSON.
    """
    path = folder / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {CONFIG}; a Hugging Face folder holds {CONFIG} and {WEIGHTS}"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    return config


def entry(config: Mapping[str, Any], name: str, folder: Path) -> int:
    """Return a size out of a configuration.

    Args:
        config: Of :func:`read_config`.
        name: Of the entry.
        folder: For the message.

    Returns:
        The number.

    Raises:
        UserError: If it is no number of one or more.
    """
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{folder / CONFIG}: {name} is {value!r}, not a number of one or more")
    return value


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Read weights.

    Args:
        path: ``model.safetensors``.

    Returns:
        Weights by name.

    Raises:
        UserError: If it is missing or broken, or if safetensors is not installed.
    """
    try:
        import safetensors.torch  # noqa: PLC0415  (an extra, needed here alone)
    except ImportError:
        raise UserError(
            f"reading {path} needs the package safetensors; one of: pip install safetensors, "
            "pip install 'deltasam_fairseq[huggingface]'"
        ) from None
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; with transformers, model.save_pretrained(folder) writes it"
        )
    try:
        state: dict[str, Tensor] = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} cannot be read: {error}; download it again") from None
    return state


def _require_no_bias(bias: Tensor | None, folder: Path) -> None:
    """Refuse a bias of the output, which fairseq's BART has no place for.

    Raises:
        UserError: If it is not zero.
    """
    if bias is not None and torch.count_nonzero(bias):
        largest = bias.abs().max().item()
        raise UserError(
            f"{folder}: final_logits_bias is not zero (up to {largest:.3g}); fairseq's BART has no "
            "bias at its output, so the converted model would give other logits"
        )
