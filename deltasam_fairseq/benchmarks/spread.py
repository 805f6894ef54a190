"""Median and spread of repeated measurements."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Five numbers of a sample, and its size.

    Args:
        n: How many measurements there were.
        min: The smallest.
        q1: The lower quartile.
        median: The median; what is reported and compared with limits.
        q3: The upper quartile.
        max: The largest.
    """

    n: int
    min: float
    q1: float
    median: float
    q3: float
    max: float


def spread_of(values: Sequence[float]) -> Spread:
    """Summarize measurements; quartiles are interpolated.

    Args:
        values: At least one number.

    Returns:
        Their spread, in their unit.

    Raises:
        ValueError: If there is none.

    Example:
        >>> spread_of([3.0, 1.0, 2.0, 4.0, 5.0])
        Spread(n=5, min=1.0, q1=2.0, median=3.0, q3=4.0, max=5.0)
    """
    if not values:
        raise ValueError("no measurements to summarize")
    if len(values) == 1:
        return Spread(1, *[values[0]] * 5)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(len(values), min(values), low, middle, high, max(values))
