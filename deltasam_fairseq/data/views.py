"""Two views of a sentence, as Mirror-BERT makes them (Liu et al. 2021)."""

from __future__ import annotations

from typing import Protocol

#: What stands for a hidden span. BERT's WordPiece knows it; for RoBERTa it is text, as there.
MASK = "[MASK]"
SHORTEST = 30


class Draws(Protocol):
    """A source of random numbers, such as numpy's ``Generator``."""

    def integers(self, high: int, /) -> int:
        """Return a number from 0 to ``high - 1``."""
        ...


def mask_span(sentence: str, draws: Draws, characters: int = 5) -> str:
    """Hide some consecutive characters, at random.

    As in Mirror-BERT's code: a sentence of fewer than 30 characters stays as it is, a start is
    drawn, and the mask stands where the characters from there on occur for the first time.

    Args:
        sentence: The text.
        draws: Where the start comes from; not asked for a sentence that stays.
        characters: How many to hide; none leaves every sentence as it is (SimCSE's views).

    Returns:
        What stands before the span, the mask and what stands behind it, joined by spaces.
    """
    if not characters or len(sentence) < max(SHORTEST, characters + 1):
        return sentence
    start = draws.integers(len(sentence) - characters)
    before, after = sentence.split(sentence[start : start + characters], 1)
    return f"{before} {MASK} {after}"
