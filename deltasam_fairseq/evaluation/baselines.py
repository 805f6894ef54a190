"""Summaries that need no training: what any trained model has to beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median


def lead(sources: Sequence[str], *, words: int) -> list[str]:
    """Summarize each text by its first words.

    Args:
        sources: The texts.
        words: How many words; the median length of the training targets is the usual choice.

    Returns:
        One summary per text.

    Example:
        >>> lead(["to be or not to be"], words=2)
        ['to be']
    """
    return [" ".join(source.split()[:words]) for source in sources]


def most_frequent(targets: Sequence[str], *, count: int) -> list[str]:
    """Summarize every text by the most frequent training target.

    Args:
        targets: Training targets.
        count: Number of texts.

    Returns:
        The same summary ``count`` times; of equally frequent ones the first in the training data.

    Example:
        >>> most_frequent(["Add.", "Sort.", "Sort."], count=2)
        ['Sort.', 'Sort.']
    """
    return [Counter(targets).most_common(1)[0][0]] * count


def median_words(targets: Sequence[str]) -> int:
    """Return the median number of words of some texts, rounded down, at least one."""
    return max(1, int(median(len(target.split()) for target in targets)))
