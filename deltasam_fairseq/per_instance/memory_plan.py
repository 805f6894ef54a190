"""Which of the equal ways to keep a sentence's gradient is the cheapest for a shape.

With T rows and a matrix ``(a, b)``, the factors of a linear layer's gradient
are ``T (a + b)`` numbers and the gradient itself ``a b``. Forming it costs
``T a b`` multiplications, once; with factors the norm and both ways of the
second pass cost ``T^2 (a + b)`` each. So factors win while
``T < a b / (a + b)``, times a constant that was measured (``docs/per_instance.md``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltasam_fairseq.per_instance.factors import Dense, Form, Outer

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Plan:
    """Limits and constants of the choice.

    Args:
        memory: Bytes that one temporary may take: the products of two layers'
            rows, or the perturbed weights of some sentences.
        crossover: Gradients are formed from factors of ``crossover`` times
            their own size on.
    """

    memory: int = 256 * MEBIBYTE
    crossover: float = 0.8

    def forms_gradients(self, forms: Sequence[Form], shape: torch.Size) -> bool:
        """Tell whether to keep a parameter's gradients formed.

        Args:
            forms: Its gradients, one per use.
            shape: Of the parameter, two dimensions or more.

        Returns:
            Whether the factors are not much smaller.
        """
        width = shape[1:].numel()
        kept = 0
        for form in forms:
            if not isinstance(form, Dense):
                sides = shape[0] + width if isinstance(form, Outer) else width
                kept += form.right.shape[1] * sides
        return kept > self.crossover * shape.numel()

    def sentences(self, count: int, each: int, like: Tensor) -> Iterator[slice]:
        """Cut the batch into as few pieces as the memory allows.

        Args:
            count: N.
            each: Entries that a sentence needs.
            like: A tensor of the dtype.

        Yields:
            Slices of sentences, in order, at least one sentence each.
        """
        step = self.rows(1, each, like)
        for start in range(0, count, step):
            yield slice(start, start + step)

    def rows(self, count: int, each: int, like: Tensor) -> int:
        """Say how many rows a block may have.

        Args:
            count: How many sentences have such a block at once.
            each: Entries that one row needs.
            like: A tensor of the dtype; half precision is computed in float32.

        Returns:
            At least 1.
        """
        return max(1, self.memory // max(1, count * each * max(4, like.element_size())))
