"""Resampling: bootstrap intervals, and paired tests between two systems.

Both take what is summed over the examples, and a statistic of the sums: the mean for a score per
example, or a metric such as Matthews' correlation, which is a function of counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltasam_fairseq.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]
    #: From sums, of shape (draws, *parts), to one value or several for each draw.
    Statistic = Callable[[Array], Array]
    #: From a generator, the number of examples and that of draws, to how often each is drawn.
    Draw = Callable[[np.random.Generator, int, int], NDArray[np.int64]]

#: The defaults are those of ROUGE-1.5.5 (``-r 1000``) and of sacreBLEU (``--paired-ar``).
RESAMPLES, TRIALS, SEED = 1000, 10_000, 12345
#: With more differences the signs are drawn at random; these have 65,536 patterns.
MOST_EXACT = 16
#: Numbers in one block of draws: 64 MB.
_BLOCK = 8_000_000
#: Sums in another order differ in the last digits, and equal must count as equal.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Resampling:
    """A number of random draws and their seed.

    Args:
        draws: How many, at least one.
        seed: Of NumPy's default generator; equal seeds give equal results.
    """

    draws: int
    seed: int = SEED

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.draws < 1 or self.seed < 0:
            raise UserError(
                f"{self.draws} draws with seed {self.seed}: at least one draw is wanted and a "
                "seed that is not negative"
            )

    def blocks(self, examples: int) -> Iterator[int]:
        """Yield sizes of blocks of draws that fit into memory, with a number for each example."""
        size = max(1, _BLOCK // examples)
        for begin in range(0, self.draws, size):
            yield min(size, self.draws - begin)


def draw_examples(rng: np.random.Generator, n: int, draws: int) -> NDArray[np.int64]:
    """Return how often each of n examples is drawn, one after another, with replacement.

    ROUGE's intervals are made of these.
    """
    import numpy as np  # noqa: PLC0415 - `deltasam --help` does without

    return np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(draws)])


def draw_counts(rng: np.random.Generator, n: int, draws: int) -> NDArray[np.int64]:
    """Return the same as :func:`draw_examples` in distribution, from other random numbers.

    The intervals of ``deltasam table significance`` are made of these.
    """
    return rng.multinomial(n, [1 / n] * n, size=draws)


def bootstrap_interval(
    parts: ArrayLike,
    resampling: Resampling,
    statistic: Statistic | None = None,
    *,
    tail: float = 0.025,
    draw: Draw | None = None,
) -> list[tuple[float, float]]:
    """Find between which numbers a statistic lies: the percentile bootstrap.

    Examples are drawn with replacement, as many as there are; the interval has all draws but the
    lowest and the highest.

    Args:
        parts: What is summed, of shape (examples, *parts). All parts share the draws.
        resampling: How often examples are drawn, and the seed.
        statistic: Of the sums; none is the mean.
        tail: Share of the draws below the interval, and above it.
        draw: How the numbers of times are drawn; none is :func:`draw_examples`.

    Returns:
        Lower and upper end for each value of the statistic.

    Example:
        >>> bootstrap_interval([[3.0], [3.0]], Resampling(draws=10))
        [(3.0, 3.0)]
    """
    import numpy as np  # noqa: PLC0415 - `deltasam --help` does without

    table = np.asarray(parts, dtype=np.float64)
    n = len(table)
    rng = np.random.default_rng(resampling.seed)
    found = []
    for size in resampling.blocks(n):
        counts = (draw or draw_examples)(rng, n, size).astype(np.float64)
        sums = np.tensordot(counts, table, axes=1)
        found.append(sums / n if statistic is None else statistic(sums))
    ends = np.quantile(np.concatenate(found), [tail, 1 - tail], axis=0)
    low, high = ends.reshape(2, -1).tolist()
    return list(zip(low, high, strict=True))


def randomization_test(
    parts: ArrayLike,
    others: ArrayLike,
    resampling: Resampling,
    statistic: Statistic | None = None,
) -> list[float]:
    """Test whether a statistic differs between two systems; two-sided.

    Paired approximate randomization (Noreen 1989): if the systems are equal, what they made of an
    example may be swapped. The p-value is the share of random swappings, the observed one
    included, that differ by as much as the systems or more.

    Args:
        parts: Of one system, what is summed, of shape (examples, *parts).
        others: Of the other on the same examples.
        resampling: How often examples are swapped at random, and the seed.
        statistic: Of the sums; none is the mean.

    Returns:
        A p-value for each value of the statistic, never below ``1 / (draws + 1)``.

    Example:
        >>> randomization_test([[1.0], [2.0]], [[1.0], [2.0]], Resampling(draws=99))
        [1.0]
    """
    import numpy as np  # noqa: PLC0415 - `deltasam --help` does without

    first, second = np.asarray(parts, dtype=np.float64), np.asarray(others, dtype=np.float64)
    n = len(first)

    def distance(sums: Array, other_sums: Array) -> Array:
        if statistic is None:
            return np.abs(sums - other_sums) / n
        return np.abs(statistic(sums) - statistic(other_sums))

    total, other_total = first.sum(axis=0)[None], second.sum(axis=0)[None]
    least = distance(total, other_total) - _ROUNDING
    rng = np.random.default_rng(resampling.seed)
    hits = np.zeros(least.shape[1:])
    for size in resampling.blocks(n):
        swaps = rng.integers(2, size=(size, n)).astype(np.float64)
        moved = np.tensordot(swaps, second - first, axes=1)
        hits += (distance(total + moved, other_total - moved) >= least).sum(axis=0)
    p_values: list[float] = ((hits + 1) / (resampling.draws + 1)).reshape(-1).tolist()
    return p_values


def sign_flip_test(differences: Sequence[float]) -> float:
    """Test whether paired differences have a mean of zero; two-sided.

    If the systems are equal, each difference is as likely to have the other sign. The p-value
    is the share of sign patterns whose mean is as far from zero as the observed one or
    farther: of all patterns for up to ``MOST_EXACT`` differences, else of random ones.

    Returns:
        The p-value, never below :func:`least_p`.

    Raises:
        UserError: If there is no difference.

    Example:
        >>> sign_flip_test([1.0, 2.0, 3.0])
        0.25
    """
    import numpy as np  # noqa: PLC0415 - `deltasam --help` does without

    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    if not n:
        raise UserError("there is nothing to test: the methods share no seed")
    if n > MOST_EXACT:
        return randomization_test(values[:, None], np.zeros((n, 1)), Resampling(TRIALS))[0]
    flipped = np.arange(2**n)[:, None] >> np.arange(n) & 1
    sums = np.abs((1.0 - 2.0 * flipped) @ values)
    return float(np.mean(sums >= abs(values.sum()) - _ROUNDING * np.abs(values).sum()))


def least_p(n: int) -> float:
    """Return the smallest p-value that the sign-flip test of n differences can have.

    It is that of two patterns among all: all signs as observed, and all the other way. With
    random patterns it is that of the observed one among them.

    Example:
        >>> least_p(5) == 1 / 16
        True
    """
    return float(2.0 ** (1 - n)) if n <= MOST_EXACT else 1 / (TRIALS + 1)
