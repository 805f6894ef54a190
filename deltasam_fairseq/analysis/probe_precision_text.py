"""Pairs of sentences as batches: WordPiece and the file of MRPC."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from deltasam_fairseq.analysis.probe_precision_model import Batch
from deltasam_fairseq.errors import UserError

LONGEST_WORD = 100
_COLUMNS = 5
# The blocks that BERT takes for Chinese; each of their characters is a word.
_IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


class Pair(NamedTuple):
    """Two sentences and whether they mean the same.

    Args:
        first: The first sentence.
        second: The second sentence.
        label: 1 if they do, else 0.
    """

    first: str
    second: str
    label: int


def read_pairs(path: Path) -> list[Pair]:
    """Read MRPC as GLUE distributes it, a table with five columns.

    Args:
        path: ``train.tsv``.

    Returns:
        The pairs, in the order of the file.

    Raises:
        UserError: If there is no such file, or it is not such a table.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; it should be train.tsv of MRPC")
    pairs = []
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != _COLUMNS or cells[0] not in {"0", "1"}:
            raise UserError(f"{path}, line {number}: not a row of MRPC (label, 2 ids, 2 sentences)")
        pairs.append(Pair(cells[3], cells[4], int(cells[0])))
    return pairs


class WordPiece:
    """BERT's uncased tokenizer.

    Args:
        vocabulary: The tokens, in the order of their numbers.

    Raises:
        UserError: If one of ``[PAD] [UNK] [CLS] [SEP]`` is missing.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self._number = {token: number for number, token in enumerate(vocabulary)}
        missing = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"} - self._number.keys()
        if missing:
            raise UserError(f"not a vocabulary of BERT: it lacks {', '.join(sorted(missing))}")

    def numbers(self, text: str) -> list[int]:
        """Split a text into tokens.

        Args:
            text: Any text.

        Returns:
            Their numbers, without the special tokens.
        """
        return [self._number[piece] for word in words(text) for piece in self._pieces(word)]

    def batch(self, pairs: Sequence[Pair], longest: int = 128) -> Batch:
        """Lay pairs out as BERT reads them: ``[CLS] first [SEP] second [SEP]``.

        Args:
            pairs: The pairs.
            longest: Number of tokens above which a pair is cut.

        Returns:
            The batch, padded to its longest pair.
        """
        start, end = self._number["[CLS]"], self._number["[SEP]"]
        rows = []
        for pair in pairs:
            first = [start, *self.numbers(pair.first), end]
            second = [*self.numbers(pair.second), end]
            types = [0] * len(first) + [1] * len(second)
            rows.append(((first + second)[:longest], types[:longest]))
        width = max(len(tokens) for tokens, _ in rows)
        pad = self._number["[PAD]"]
        return Batch(
            tokens=torch.tensor([t + [pad] * (width - len(t)) for t, _ in rows]),
            segments=torch.tensor([s + [0] * (width - len(s)) for _, s in rows]),
            padding=torch.tensor([[i >= len(t) for i in range(width)] for t, _ in rows]),
            labels=torch.tensor([pair.label for pair in pairs]),
        )

    def _pieces(self, word: str) -> list[str]:
        """Take the longest token that fits, again and again; unknown if none fits once."""
        if len(word) > LONGEST_WORD:
            return ["[UNK]"]
        pieces: list[str] = []
        start = 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = word[start:end] if start == 0 else f"##{word[start:end]}"
                if piece in self._number:
                    break
            else:
                return ["[UNK]"]
            pieces.append(piece)
            start = end
        return pieces


def words(text: str) -> list[str]:
    """Split a text at blanks and around punctuation, in lower case, without accents.

    Args:
        text: Any text.

    Returns:
        The words.

    Example:
        >>> words("Café, isn't it?")
        ['cafe', ',', 'isn', "'", 't', 'it', '?']
    """
    return "".join(_spaced(text)).split()


def _spaced(text: str) -> Iterator[str]:
    clean = "".join(map(_cleaned, text))
    for character in unicodedata.normalize("NFD", clean.lower()):
        category = unicodedata.category(character)
        if category == "Mn":
            continue
        alone = category.startswith("P") or (character.isascii() and category.startswith("S"))
        ideograph = any(low <= ord(character) <= high for low, high in _IDEOGRAPHS)
        yield f" {character} " if alone or ideograph else character


def _cleaned(character: str) -> str:
    if character in "\t\n\r" or unicodedata.category(character) == "Zs":
        return " "
    is_control = unicodedata.category(character).startswith("C")
    return "" if is_control or character == "\ufffd" else character


def shuffled(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """Return the pairs in a random order.

    Args:
        pairs: The pairs.
        seed: Of the order.

    Returns:
        A new list.
    """
    order = list(pairs)
    random.Random(seed).shuffle(order)
    return order
