"""From sentences to the tokens of a pretrained encoder: WordPiece and GPT-2's BPE."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.data.gpt2 import encode_files
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import write_lines

GPT2_FILES = ("encoder.json", "vocab.bpe")


class Vocabulary(Protocol):
    """A way to cut sentences into tokens."""

    def encode(self, lines: Sequence[str], work: Path, *, workers: int) -> list[list[str]]:
        """Cut sentences, without special tokens.

        Args:
            lines: One sentence each.
            work: A folder for files of its own.
            workers: Number of processes.

        Returns:
            The tokens of each, as the dictionary spells them.
        """
        ...

    def specials(self, sentences: int) -> int:
        """Return how many special tokens one or two sentences get."""
        ...


def vocabulary_of(encoder: PreparedEncoder) -> Vocabulary:
    """Return an encoder's vocabulary: WordPiece for a BERT, GPT-2's BPE for a RoBERTa."""
    if encoder.is_bert:
        return WordPiece(encoder.path / "vocab.txt", **encoder.cutting)
    return Gpt2Words(encoder.path / "gpt2")


@dataclass(frozen=True)
class WordPiece:
    """BERT's tokens, by the ``tokenizers`` library; ``vocab`` is ``vocab.txt``."""

    vocab: Path
    lowercase: bool
    strip_accents: bool
    split_chinese: bool = True

    def encode(self, lines: Sequence[str], work: Path, *, workers: int) -> list[list[str]]:
        """Cut sentences; see :meth:`Vocabulary.encode`."""
        del work, workers
        tokenizer = _tokenizers().BertWordPieceTokenizer(
            str(self.vocab),
            lowercase=self.lowercase,
            strip_accents=self.strip_accents,
            handle_chinese_chars=self.split_chinese,
        )
        encoded = tokenizer.encode_batch(list(lines), add_special_tokens=False)
        return [list(one.tokens) for one in encoded]

    def specials(self, sentences: int) -> int:
        """Return 3 for ``[CLS] A [SEP] B [SEP]``, 2 for ``[CLS] A [SEP]``."""
        return 1 + sentences


@dataclass(frozen=True)
class Gpt2Words:
    """RoBERTa's tokens, by fairseq's program.

    Args:
        folder: Holds ``encoder.json`` and ``vocab.bpe``.
    """

    folder: Path

    def encode(self, lines: Sequence[str], work: Path, *, workers: int) -> list[list[str]]:
        """Cut sentences; see :meth:`Vocabulary.encode`."""
        source, target, log = work / "bpe.in", work / "bpe.out", work / "encode.log"
        write_lines(source, lines)
        encode_files({source: target}, self.folder, workers=workers, log=log)
        encoded = [line.split() for line in target.read_text(encoding="utf-8").split("\n")[:-1]]
        source.unlink()
        target.unlink()
        if len(encoded) != len(lines):
            raise UserError(
                f"fairseq's BPE encoder made {len(encoded)} lines of {len(lines)}; the disk may "
                f"be full: {log}"
            )
        return encoded

    def specials(self, sentences: int) -> int:
        """Return 4 for ``<s> A </s></s> B </s>``, 2 for ``<s> A </s>``."""
        return 2 * sentences


def cut(sides: Sequence[list[str]], limit: int) -> list[list[str]]:
    """Cut the tokens of one or two sentences to a common limit, the longer one first.

    Returns:
        What stays. Of two equally long ones the second is cut.

    Example:
        >>> cut([["a", "b", "c", "d"], ["x", "y"]], 5)
        [['a', 'b', 'c'], ['x', 'y']]
    """
    lengths = [len(side) for side in sides]
    while sum(lengths) > limit:
        longest = max(range(len(lengths)), key=lambda side: (lengths[side], side))
        lengths[longest] -= 1
    return [side[:length] for side, length in zip(sides, lengths, strict=True)]


def write_bert_dictionary(vocab: Path, out: Path) -> list[int]:
    """Write BERT's vocabulary, a file with one token per line, as a dictionary of fairseq.

    Returns:
        The order of its rows; see :func:`bert_order`.
    """
    tokens, order = _tokens(vocab), bert_order(vocab)
    words = ("<mask>" if tokens[row] == "[MASK]" else tokens[row] for row in order[4:])
    write_lines(out, [f"{word} 1" for word in words])
    return order


def bert_order(vocab: Path) -> list[int]:
    """Return for each row of fairseq's embedding the row of BERT's.

    Args:
        vocab: A file with one token per line.

    Returns:
        ``[CLS] [PAD] [SEP] [UNK]`` first, as ``<s> <pad> </s> <unk>``, then the others in their
        order.

    Raises:
        UserError: If a special token is missing, a token occurs twice or is one of fairseq's.
    """
    tokens = _tokens(vocab)
    rows = {token: row for row, token in enumerate(tokens)}
    specials = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
    missing = [token for token in specials if token not in rows]
    if missing:
        raise UserError(f"{vocab} lacks {', '.join(missing)}; it is no vocabulary of BERT")
    if len(rows) != len(tokens):
        twice = next(token for row, token in enumerate(tokens) if rows[token] != row)
        raise UserError(f"{vocab} has {twice!r} twice; every line must be another token")
    taken = [token for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if token in rows]
    if taken:
        raise UserError(
            f"{vocab} has {', '.join(taken)}, which fairseq's dictionary keeps for itself"
        )
    first = [rows[token] for token in specials[:4]]
    rest = [row for row in range(len(tokens)) if row not in first]
    return [*first, *rest]


def _tokens(vocab: Path) -> list[str]:
    return vocab.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def _tokenizers() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ImportError:
        raise UserError(
            "BERT's WordPiece needs the package tokenizers; one of: pip install tokenizers, "
            "pip install 'deltasam_fairseq[bert]'"
        ) from None
