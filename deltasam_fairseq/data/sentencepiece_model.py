"""One sentencepiece model for sources and targets."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from deltasam_fairseq.errors import UserError

#: Fixed, whatever the number of processors: the model file depends on it.
_THREADS = 1


def train_model(texts: Sequence[str], model: Path, *, vocab_size: int) -> int:
    """Train a unigram model, the same for the same texts; a small text gives fewer pieces."""
    trained = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # Not file names: the model would hold them.
            sentence_iterator=iter(texts),
            model_writer=trained,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            num_threads=_THREADS,
            # Longer ones would be left out without a word; the default is 4192 bytes.
            max_sentence_length=max(len(text.encode()) for text in texts) + 1,
            minloglevel=2,
        )
    except RuntimeError as error:
        few = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        if not few:
            raise
        raise UserError(
            f"--vocab-size {vocab_size} is too small for this text, whose characters alone need "
            f"{few[1]} pieces"
        ) from None
    model.write_bytes(trained.getvalue())
    return len(sentencepiece.SentencePieceProcessor(model_file=str(model)))


def encode(texts: Sequence[str], model: Path, *, max_tokens: int, workers: int) -> list[str]:
    """Cut texts into pieces, ``max_tokens`` at most, separated by spaces."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    encoded = processor.encode(list(texts), out_type=str, num_threads=workers)
    return [" ".join(pieces[:max_tokens]) for pieces in encoded]


def decode(pieces: str) -> str:
    """Put pieces, separated by spaces, together again.

    Returns:
        The text.

    Example:
        >>> decode("▁Return ▁the ▁sub tree s .")
        'Return the subtrees.'
    """
    return pieces.replace(" ", "").replace("▁", " ").strip()
