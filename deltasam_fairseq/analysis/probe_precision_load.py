"""Models and batches to probe: a pretrained folder with MRPC, or random ones of a size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deltasam_fairseq.analysis.probe_precision_model import (
    Batch,
    Classifier,
    Size,
    random_weights,
)
from deltasam_fairseq.analysis.probe_precision_text import WordPiece, read_pairs, shuffled
from deltasam_fairseq.conversion.folder import (
    CONFIG,
    load_weights,
    plain_names,
    read_config,
    weight_files,
)
from deltasam_fairseq.conversion.wordpiece import read_wordpiece
from deltasam_fairseq.data.files import file_sha256
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.registry import nearest

#: Sizes for random weights; RoBERTa-large's has 355 million parameters.
SIZES = {
    "roberta-large": Size(24, 1024, 16, 4096, 50265, 514, 1),
    "tiny": Size(2, 32, 4, 64, 100, 64, 1),
}

LEARNING_RATE = 1e-4

# Names of a BERT folder's tensors, by ours.
_EMBEDDINGS = {
    "words.weight": "embeddings.word_embeddings.weight",
    "positions.weight": "embeddings.position_embeddings.weight",
    "segments.weight": "embeddings.token_type_embeddings.weight",
    "norm.weight": "embeddings.LayerNorm.weight",
    "norm.bias": "embeddings.LayerNorm.bias",
}
_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}


class Subject(NamedTuple):
    """What is probed.

    Args:
        model: In float32.
        batches: The batches.
        about: What the model and its sentences are, for the record.
    """

    model: Classifier
    batches: list[Batch]
    about: dict[str, Any]


def pretrained(
    folder: Path,
    mrpc: Path,
    *,
    batches: int,
    sentences: int,
    tune: int,
    seed: int,
    say: Callable[[str], None],
) -> Subject:
    """Load a BERT folder and tune it a little, so that sentences have different losses.

    Args:
        folder: With ``config.json``, weights and ``vocab.txt`` or ``tokenizer.json``.
        mrpc: ``train.tsv`` of MRPC.
        batches: How many to probe. Their pairs are not among those tuned on.
        sentences: Pairs in a batch.
        tune: Updates of plain Adam, on all weights and with dropout.
        seed: Of the head, the order of the pairs, and dropout.
        say: Called with progress.

    Returns:
        The tuned model and the batches.

    Raises:
        UserError: If a file is missing or not what it should be.
    """
    model = read_encoder(folder, seed)
    files = read_wordpiece(folder)
    if not (files.lowercase and files.strip_accents and files.split_chinese):
        raise UserError(f"{folder} is not an uncased BERT, whose WordPiece is the only one here")
    wordpiece = WordPiece(files.tokens)
    pairs = shuffled(read_pairs(mrpc), seed)
    wanted = (tune + batches) * sentences
    if len(pairs) < wanted:
        raise UserError(f"{mrpc} has {len(pairs)} pairs, {wanted} are needed")
    made = [
        wordpiece.batch(pairs[start : start + sentences]) for start in range(0, wanted, sentences)
    ]
    losses = fine_tune(model, made[:tune], seed)
    if losses:
        say(f"tuned: loss {losses[0]:.3f} in the first update, {losses[-1]:.3f} in the last")
    about = {
        "name": folder.absolute().name,
        "weights": "pretrained",
        "weights_sha256": ",".join(map(file_sha256, weight_files(folder))),
        "text": "MRPC",
        "text_sha256": file_sha256(mrpc),
        "tuned_updates": tune,
        "learning_rate": LEARNING_RATE,
    }
    return Subject(model, made[tune:], about)


def random_subject(name: str, *, batches: int, sentences: int, tokens: int, seed: int) -> Subject:
    """Draw a model and sentences at random.

    Args:
        name: One of :data:`SIZES`.
        batches: How many to probe.
        sentences: In a batch.
        tokens: In each sentence.
        seed: Of all draws.

    Returns:
        The model and the batches.

    Raises:
        UserError: If there is no such size, or the sentences are too long for it.
    """
    if name not in SIZES:
        raise UserError(f"unknown size {name!r}{nearest(name, SIZES)}")
    size = SIZES[name]
    if tokens > size.positions:
        raise UserError(f"{name} has {size.positions} positions, got {tokens} tokens")
    model = Classifier(size)
    random_weights(model, seed)
    generator = torch.Generator().manual_seed(seed)
    shape = (sentences, tokens)
    made = [
        Batch(
            tokens=torch.randint(size.vocabulary, shape, generator=generator),
            segments=torch.zeros(shape, dtype=torch.long),
            padding=torch.zeros(shape, dtype=torch.bool),
            labels=torch.randint(2, shape[:1], generator=generator),
        )
        for _ in range(batches)
    ]
    return Subject(model, made, {"name": name, "weights": "random, std 0.02", "text": "random"})


def read_encoder(folder: Path, seed: int) -> Classifier:
    """Read an encoder and draw a head for it.

    Args:
        folder: With ``config.json`` and weights.
        seed: Of the head.

    Returns:
        The model, in float32.

    Raises:
        UserError: If a file is missing, or tensors are missing or have other shapes.
    """
    config = read_config(folder)
    try:
        model = Classifier(
            Size(
                layers=config["num_hidden_layers"],
                width=config["hidden_size"],
                heads=config["num_attention_heads"],
                inner=config["intermediate_size"],
                vocabulary=config["vocab_size"],
                positions=config["max_position_embeddings"],
                segments=config["type_vocab_size"],
                epsilon=config["layer_norm_eps"],
            )
        )
    except KeyError as error:
        raise UserError(f"{folder / CONFIG}: not the configuration of a BERT: no {error}") from None
    random_weights(model, seed)
    anchor = _EMBEDDINGS["words.weight"]
    state = plain_names(load_weights(folder), anchor=anchor, base="bert", source=str(folder))
    try:
        for name, tensor in model.state_dict().items():
            if not name.startswith(("dense.", "out.")):
                tensor.copy_(state[_bert_name(name)])
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{folder}: not the weights of a BERT: {error}") from error
    return model


def fine_tune(model: Classifier, batches: Sequence[Batch], seed: int) -> list[float]:
    """Train with plain Adam, one update per batch.

    Args:
        model: Changed in place.
        batches: What to train on, in this order.
        seed: Of dropout.

    Returns:
        The mean loss of each update.
    """
    torch.manual_seed(seed)
    adam = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    model.train()
    seen = []
    for batch in batches:
        loss = model.losses(batch).mean()
        adam.zero_grad()
        torch.autograd.backward(loss)
        adam.step()
        seen.append(loss.item())
    model.zero_grad()
    return seen


def _bert_name(name: str) -> str:
    if name in _EMBEDDINGS:
        return _EMBEDDINGS[name]
    _, number, part, kind = name.split(".")
    return f"encoder.layer.{number}.{_LAYER[part]}.{kind}"
