"""Summaries that need no training: what any trained model has to beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median


def lead(sources: Sequence[str], *, words: int) -> list[str]:
    """Return the first words of each text; their usual number is :func:`median_words`.

    Example:
        >>> lead(["to be or not to be"], words=2)
        ['to be']
    """
    return [" ".join(source.split()[:words]) for source in sources]


def most_frequent(targets: Sequence[str], *, count: int) -> list[str]:
    """Return the most frequent training target ``count`` times.

    Of equally frequent targets it is the first in the training data.

    Example:
        >>> most_frequent(["Add.", "Sort.", "Sort."], count=2)
        ['Sort.', 'Sort.']
    """
    return [Counter(targets).most_common(1)[0][0]] * count


def median_words(targets: Sequence[str]) -> int:
    """Return the median number of words of some texts, rounded down, at least one."""
    return max(1, int(median(len(target.split()) for target in targets)))
