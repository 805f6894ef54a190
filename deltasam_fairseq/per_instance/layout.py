"""Where the sentences are in a tensor: a dimension, a share of one, or a list of owners.

``split`` brings a tensor of a layer's rows to ``(N, ...)``, with the other
dimensions in their order; ``join`` is its inverse. A tensor ``(T, N, C)`` with
the sentences in dimension 1 becomes ``(N, T, 1, C)``: the place that the
sentences had keeps what else was in it, so that shapes still broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Strided:
    """The sentences are a dimension, alone or flattened together with another.

    Args:
        dim: Which dimension; not the last ones, which belong to the layer.
        count: N.
        major: Of a dimension of size ``N k``: whether the sentence is the slower
            index, as in ``(N, k)`` flattened, or the faster one.
    """

    dim: int
    count: int
    major: bool = True

    def fits(self, shape: torch.Size) -> bool:
        """Tell whether a shape can be split like this."""
        return self.dim < len(shape) and shape[self.dim] % self.count == 0

    def split(self, rows: Tensor) -> Tensor:
        """Bring the sentences to the front.

        Args:
            rows: Any tensor with the layer's row dimensions first.

        Returns:
            Shape ``(N, ...)``, of one dimension more; a view.
        """
        each = rows.shape[self.dim] // self.count
        parts = (self.count, each) if self.major else (each, self.count)
        split = rows.reshape(*rows.shape[: self.dim], *parts, *rows.shape[self.dim + 1 :])
        return split.movedim(self.dim + (not self.major), 0)

    def listed(self, rows: Tensor, last: int) -> Tensor:
        """Split and flatten, as :func:`as_list` does, in one view where that is enough.

        Args:
            rows: As for :meth:`split`.
            last: How many dimensions are the layer's own.

        Returns:
            Shape ``(N, T, own...)``.
        """
        if rows.dim() - last == 2 and rows.shape[self.dim] == self.count:
            return rows.transpose(0, 1) if self.dim else rows
        return as_list(self.split(rows), last)

    def spread(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Bring every sentence's own values to its rows.

        Args:
            values: Shape ``(N, own...)``.
            shape: Of the rows, ending with the layer's own.

        Returns:
            A tensor that broadcasts against one of this shape.
        """
        own = values.shape[1:]
        rows = shape[: len(shape) - len(own)]
        ones = [1] * len(rows)
        if rows[self.dim] == self.count:
            return values.reshape(*ones[: self.dim], self.count, *ones[self.dim + 1 :], *own)
        each = (*rows[: self.dim], rows[self.dim] // self.count, *rows[self.dim + 1 :])
        return self.join(values.reshape(self.count, *ones, *own).expand(self.count, *each, *own))

    def join(self, parts: Tensor) -> Tensor:
        """Undo :meth:`split`.

        Args:
            parts: Shape ``(N, ...)``.

        Returns:
            A tensor of the layer's own shape.
        """
        where = self.dim + (not self.major)
        return parts.movedim(0, where).flatten(self.dim, self.dim + 1)


class Packed:
    """Rows of all sentences in one list, as after picking the masked tokens.

    Args:
        owners: Sentence of each row, shape ``(M,)``.
        count: N.
    """

    def __init__(self, owners: Tensor, count: int) -> None:
        self.count = count
        before = owners.new_zeros(count).index_add(0, owners, torch.ones_like(owners)).cumsum(0)
        self.width = int(before.diff(prepend=before.new_zeros(1)).max())
        order = owners.argsort(stable=True)
        starts = torch.cat([before.new_zeros(1), before[:-1]])
        position = torch.empty_like(owners)
        position[order] = torch.arange(len(owners), device=owners.device) - starts[owners[order]]
        self._slots = owners * self.width + position

    def fits(self, shape: torch.Size) -> bool:
        """Tell whether a shape can be split like this."""
        return shape[0] == len(self._slots)

    def split(self, rows: Tensor) -> Tensor:
        """Pad each sentence's rows to the longest one's number, with zeros.

        Args:
            rows: Shape ``(M, ...)``.

        Returns:
            Shape ``(N, width, ...)``.
        """
        room = rows.new_zeros(self.count * self.width, *rows.shape[1:])
        filled = room.index_copy(0, self._slots, rows)
        return filled.view(self.count, self.width, *rows.shape[1:])

    def listed(self, rows: Tensor, last: int) -> Tensor:
        """Split; the rows are a list already."""
        del last
        return self.split(rows)

    def spread(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Bring every sentence's own values, shape ``(N, own...)``, to its rows."""
        del shape
        return self.join(values[:, None])

    def join(self, parts: Tensor) -> Tensor:
        """Undo :meth:`split`; what was padding is dropped.

        Args:
            parts: Shape ``(N, width, ...)``, or with 1 for the width.

        Returns:
            Shape ``(M, ...)``.
        """
        whole = parts.expand(self.count, self.width, *parts.shape[2:])
        return whole.flatten(0, 1)[self._slots]


Layout = Strided | Packed


def as_list(parts: Tensor, last: int) -> Tensor:
    """Flatten everything between the sentence and the layer's own dimensions.

    Args:
        parts: Shape ``(N, ...)``, from ``split``.
        last: How many dimensions are the layer's own.

    Returns:
        Shape ``(N, T, own...)``; a view where the memory allows one.
    """
    own = parts.shape[parts.dim() - last :]
    return parts.reshape(parts.shape[0], -1, *own)
