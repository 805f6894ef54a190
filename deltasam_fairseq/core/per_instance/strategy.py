"""Which of the equal ways to form a product is the cheapest for a shape.

Per sentence, with T rows and a matrix ``(a, b)``: the thin products cost
``T^2 (a + b)`` multiplications and never form the matrix; forming it costs
``T a b``. So thin products win while ``T < a b / (a + b)``, times a constant
that was measured (see ``docs/per_instance.md``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Plan:
    """Limits and constants of the choice.

    Args:
        memory: Bytes that one temporary may take.
        norm_crossover: Forming ``G_i`` for its norm is chosen from
            ``norm_crossover`` times a b / (a + b) rows on.
        product_crossover: The same for forming ``w + eps_i``.
    """

    memory: int = 256 * MEBIBYTE
    norm_crossover: float = 0.9
    product_crossover: float = 0.8

    def forms_gradients(self, length: int, shape: torch.Size) -> bool:
        """Tell whether to form gradients for their norm.

        Args:
            length: T.
            shape: ``(a, b)``.

        Returns:
            Whether that is cheaper than products of rows.
        """
        return length * sum(shape) > self.norm_crossover * shape.numel()

    def forms_matrices(self, length: int, shape: torch.Size, like: Tensor) -> bool:
        """Tell whether to form perturbed weights.

        Args:
            length: T.
            shape: ``(a, b)``.
            like: A tensor of the dtype.

        Returns:
            Whether that is cheaper than thin products, and one sentence's fits.
        """
        if shape.numel() * like.element_size() > self.memory:
            return False
        return length * sum(shape) > self.product_crossover * shape.numel()

    def sentences(self, count: int, each: int, like: Tensor) -> Iterator[slice]:
        """Cut the batch into as few pieces as the memory allows.

        Args:
            count: N.
            each: Entries that a sentence needs.
            like: A tensor of the dtype.

        Yields:
            Slices of sentences, in order, at least one sentence each.
        """
        step = max(1, self.memory // max(1, each * like.element_size()))
        for start in range(0, count, step):
            yield slice(start, start + step)

    def rows(self, rows: Tensor, length: int) -> int:
        """Say how many rows a block may have whose products with others fit.

        Args:
            rows: Shape ``(N, T, ...)``.
            length: Rows per sentence on the other side.

        Returns:
            At least 1.
        """
        return max(1, self.memory // max(1, len(rows) * length * rows.element_size()))
