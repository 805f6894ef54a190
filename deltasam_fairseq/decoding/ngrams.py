"""Blocking of repeated n-grams that works without fairseq's CUDA extension.

Where the extension is not compiled, as in every wheel, fairseq falls back to
Python code that looks for the last n-1 tokens of a hypothesis at the end of the
whole buffer. There it finds padding, so that ``--no-repeat-ngram-size`` blocks
nothing, without a word.
"""

from __future__ import annotations

import math
from typing import Any

from fairseq.ngram_repeat_block import NGramRepeatBlock
from torch import Tensor


def block_repeats(tokens: Tensor, lprobs: Tensor, *, size: int) -> Tensor:
    """Rule out every token that would complete an n-gram for the second time.

    Args:
        tokens: What each hypothesis has generated so far, shape ``(H, T)``.
        lprobs: Log-probabilities of the next token, shape ``(H, V)``; changed in place.
        size: n, one or more.

    Returns:
        ``lprobs``, minus infinity where a token is ruled out.

    Example:
        After 5 6 7 5 6, another 7 would repeat the trigram 5 6 7:

        >>> import torch
        >>> block_repeats(torch.tensor([[5, 6, 7, 5, 6]]), torch.zeros(1, 9), size=3)
        tensor([[0., 0., 0., 0., 0., 0., 0., -inf, 0.]])
    """
    length = tokens.size(1)
    if length >= size:
        ngrams = tokens.unfold(1, size, 1)
        beginning = tokens[:, length - size + 1 :].unsqueeze(1)
        rows, places = (ngrams[:, :, :-1] == beginning).all(-1).nonzero(as_tuple=True)
        lprobs[rows, ngrams[rows, places, -1]] = -math.inf
    return lprobs


def install() -> None:
    """Put :func:`block_repeats` in the place of fairseq's fallback."""

    # fairseq passes all of them by position.
    def no_repeat_ngram(  # noqa: PLR0917
        self: Any, tokens: Tensor, lprobs: Tensor, bsz: int, beam_size: int, step: int
    ) -> Tensor:
        # The buffer begins with the token that starts the decoder, which is not generated.
        return block_repeats(tokens[:, 1 : step + 1], lprobs, size=self.no_repeat_ngram_size)

    NGramRepeatBlock._no_repeat_ngram = no_repeat_ngram
