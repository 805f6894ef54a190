"""How far a mean can be trusted: bootstrap intervals, and a paired test between two systems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltasam_fairseq.errors import UserError

#: The defaults are those of ROUGE-1.5.5 (``-r 1000``) and of sacreBLEU (``--paired-ar``).
RESAMPLES, TRIALS, SEED = 1000, 10_000, 12345


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


def bootstrap_interval(
    values: Sequence[Sequence[float]], resampling: Resampling, *, confidence: float = 0.95
) -> list[tuple[float, float]]:
    """Find between which numbers the mean lies, for each column.

    Percentile bootstrap: rows are drawn with replacement, as many as there are, and the mean is
    taken; the interval leaves half of ``1 - confidence`` of these means on each side.

    Args:
        values: One row per example, with equally many columns. All columns share the draws.
        resampling: How often rows are drawn, and the seed.
        confidence: Between 0 and 1.

    Returns:
        Lower and upper end for each column.

    Example:
        >>> bootstrap_interval([[3.0], [3.0]], Resampling(draws=10))
        [(3.0, 3.0)]
    """
    import numpy as np  # noqa: PLC0415 - `deltasam --help` does without

    table = np.asarray(values, dtype=np.float64)
    n = len(table)
    rng = np.random.default_rng(resampling.seed)
    means = np.empty((resampling.draws, table.shape[1]))
    for draw in range(resampling.draws):
        counts = np.bincount(rng.integers(n, size=n), minlength=n)
        means[draw] = counts @ table / n
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0).tolist()
    return list(zip(low, high, strict=True))


def randomization_test(
    values: Sequence[Sequence[float]], others: Sequence[Sequence[float]], resampling: Resampling
) -> list[float]:
    """Test whether two systems differ in the mean, for each column.

    Paired approximate randomization (Noreen 1989): if the systems are equal, the two scores of
    an example may be swapped. The p-value is the share of random swappings, the observed one
    included, whose means differ by as much as those observed or more. Two-sided.

    Args:
        values: Scores of one system, one row per example.
        others: Scores of the other on the same examples.
        resampling: How often the scores are swapped at random, and the seed.

    Returns:
        A p-value for each column, never below ``1 / (draws + 1)``.

    Example:
        >>> randomization_test([[1.0], [2.0]], [[1.0], [2.0]], Resampling(draws=99))
        [1.0]
    """
    import numpy as np  # noqa: PLC0415 - `deltasam --help` does without

    rng = np.random.default_rng(resampling.seed)
    differences = np.asarray(values, dtype=np.float64) - np.asarray(others, dtype=np.float64)
    observed = np.abs(differences.sum(axis=0))
    # Sums in another order differ in the last digits; equal must count as equal.
    threshold = observed - 1e-9 * np.abs(differences).sum(axis=0)
    hits = np.zeros(differences.shape[1])
    for _ in range(resampling.draws):
        signs = 1.0 - 2.0 * rng.integers(2, size=len(differences))
        hits += np.abs(signs @ differences) >= threshold
    p_values: list[float] = ((hits + 1) / (resampling.draws + 1)).tolist()
    return p_values
