"""Data sets of random words, binarized the way fairseq reads them.

One batch's worth each: the lengths are spread evenly between two bounds, so
the batch has the padding of a real one and its size does not hang on a seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary, indexed_dataset
from torch import Tensor

from deltasam_fairseq.benchmarks.workloads import Shape, Workload


def write(folder: Path, workload: Workload, seed: int) -> None:
    """Write the training set of a workload.

    Args:
        folder: Where to; it exists.
        workload: The workload.
        seed: Seed of words and classes.
    """
    (write_pairs if workload.paired else write_labelled)(folder, workload.shape, seed)


def write_pairs(folder: Path, shape: Shape, seed: int) -> None:
    """Write a training set for ``--task translation``, from ``src`` to ``tgt``.

    Args:
        folder: Where to; it exists.
        shape: Its size.
        seed: Seed of the words.
    """
    draw = torch.Generator().manual_seed(seed)
    words = _dictionary(shape.words)
    for side in ("src", "tgt"):
        words.save(str(folder / f"dict.{side}.txt"))
    bounds = (shape.shortest, shape.longest)
    sources = _sentences(shape, bounds, words, draw)
    # The longest target belongs to the shortest source.
    targets = _sentences(shape, shape.target or bounds, words, draw)[::-1]
    for side, sentences in (("src", sources), ("tgt", targets)):
        _write(folder / f"train.src-tgt.{side}", sentences, len(words))


def write_labelled(folder: Path, shape: Shape, seed: int) -> None:
    """Write a training set for ``--task sentence_prediction`` with two classes.

    Args:
        folder: Where to; it exists.
        shape: Its size.
        seed: Seed of words and classes.
    """
    draw = torch.Generator().manual_seed(seed)
    bounds = (shape.shortest, shape.longest)
    words, labels = _dictionary(shape.words), Dictionary()
    words.add_symbol("<mask>")
    for name in ("0", "1"):
        labels.add_symbol(name, n=1)
    for part, dictionary in (("input0", words), ("label", labels)):
        (folder / part).mkdir()
        dictionary.save(str(folder / part / "dict.txt"))
    _write(folder / "input0" / "train", _sentences(shape, bounds, words, draw), len(words))
    classes = torch.randint(2, (shape.sentences,), generator=draw) + labels.nspecial
    rows = [torch.tensor([c, labels.eos()]) for c in classes.tolist()]
    _write(folder / "label" / "train", rows, len(labels))


def _dictionary(words: int) -> Any:
    dictionary = Dictionary()
    for number in range(words):
        dictionary.add_symbol(f"w{number}", n=1)
    return dictionary


def _sentences(
    shape: Shape, bounds: tuple[int, int], words: Any, draw: torch.Generator
) -> list[Tensor]:
    lengths = torch.linspace(*bounds, shape.sentences).round().long()
    first, last = words.nspecial, words.nspecial + shape.words
    sentences = []
    for length in lengths.tolist():
        tokens = torch.randint(first, last, (length,), generator=draw)
        tokens[-1] = words.eos()
        sentences.append(tokens)
    return sentences


def _write(prefix: Path, sentences: list[Tensor], vocabulary: int) -> None:
    builder = indexed_dataset.make_builder(f"{prefix}.bin", impl="mmap", vocab_size=vocabulary)
    for sentence in sentences:
        builder.add_item(sentence.int())
    builder.finalize(f"{prefix}.idx")
