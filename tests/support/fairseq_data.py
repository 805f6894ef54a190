"""Tiny data sets, binarized as fairseq-preprocess does it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary, indexed_dataset

WORDS = [f"w{i}" for i in range(20)]


def dictionary_of_words() -> Dictionary:
    """Return a dictionary of :data:`WORDS`, all equally frequent."""
    words = Dictionary()
    for word in WORDS:
        words.add_symbol(word, n=100)
    return words


def write_translation_data(
    folder: Path, *, train: int = 64, valid: int = 16, aligned: bool = False
) -> Path:
    """Write pairs for ``--task translation`` whose targets are the reversed sources."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    dictionary = dictionary_of_words()
    for side in ("src", "tgt"):
        dictionary.save(str(folder / f"dict.{side}.txt"))
    for split, count in (("train", train), ("valid", valid)):
        sources = [draw.choices(WORDS, k=draw.randint(2, 7)) for _ in range(count)]
        lines = {"src": sources, "tgt": [s[::-1] for s in sources]}
        for side, sentences in lines.items():
            _write(folder / f"{split}.src-tgt.{side}", sentences, dictionary)
        if aligned:
            prefix = folder / f"{split}.src-tgt.align.src-tgt"
            builder = _builder(prefix)
            for s in sources:
                pairs = [(i, len(s) - 1 - i) for i in range(len(s))]
                builder.add_item(torch.IntTensor(pairs).flatten())
            builder.finalize(f"{prefix}.idx")
    return folder


def write_prediction_data(
    folder: Path, *, train: int = 48, regression: bool = False, flipped: Sequence[int] = ()
) -> Path:
    """Write sentences for ``--task sentence_prediction``: of two classes, or with a number each.

    Those of ``flipped``, for validation, have the other class.
    """
    draw = random.Random(1)
    words = dictionary_of_words()
    words.add_symbol("<mask>")
    for part in ("input0", "label"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    words.save(str(folder / "input0" / "dict.txt"))
    labels = Dictionary()
    for label in ("0", "1"):
        labels.add_symbol(label, n=10)
    labels.save(str(folder / "label" / "dict.txt"))
    for split, count in (("train", train), ("valid", 16)):
        sentences = [draw.choices(WORDS, k=draw.randint(2, 7)) for _ in range(count)]
        _write(folder / "input0" / split, sentences, words)
        firsts = [int(s[0][1:]) for s in sentences]
        if regression:
            text = "\n".join(str(first / len(WORDS)) for first in firsts)
            (folder / "label" / f"{split}.label").write_text(text + "\n")
        else:
            wrong = flipped if split == "valid" else ()
            classes = [int(f < 10) ^ (row in wrong) for row, f in enumerate(firsts)]
            _write(folder / "label" / split, [[str(label)] for label in classes], labels)
    return folder


def write_monolingual_data(folder: Path, *, train: int = 48) -> Path:
    """Write sentences for ``--task language_modeling`` or ``masked_lm``."""
    draw = random.Random(2)
    folder.mkdir(parents=True, exist_ok=True)
    words = dictionary_of_words()
    words.save(str(folder / "dict.txt"))
    for split, count in (("train", train), ("valid", 16)):
        _write(
            folder / split, [draw.choices(WORDS, k=draw.randint(2, 7)) for _ in range(count)], words
        )
    return folder


def _builder(prefix: Path) -> Any:
    return indexed_dataset.make_builder(f"{prefix}.bin", impl="mmap", vocab_size=len(WORDS) + 10)


def _write(prefix: Path, sentences: Sequence[Sequence[str]], dictionary: Dictionary) -> None:
    builder = _builder(prefix)
    for sentence in sentences:
        builder.add_item(
            dictionary.encode_line(" ".join(sentence), add_if_not_exist=False, append_eos=True)
        )
    builder.finalize(f"{prefix}.idx")
