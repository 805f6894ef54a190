"""Where the sentences are in a tensor: a dimension, a share of one, or a list of owners.

Where groups of them share a perturbation, the groups take the sentences' place.

``split`` brings a tensor of a layer's rows to ``(N, ...)``, with the other
dimensions in their order; ``join`` is its inverse. A tensor ``(T, N, C)`` with
the sentences in dimension 1 becomes ``(N, T, 1, C)``: the place that the
sentences had keeps what else was in it, so that shapes still broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    def unlisted(self, listed: Tensor, like: Tensor) -> Tensor:
        """Undo :meth:`listed`.

        Args:
            listed: Shape ``(N, T, own...)``.
            like: A tensor of the layer's own shape.

        Returns:
            A tensor of that shape.
        """
        return self.join(listed.view(self.split(like).shape))

    def join(self, parts: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Undo :meth:`split`.

        Args:
            parts: Shape ``(N, ...)``.
            chosen: Where each sentence is among the parts, if these are in another order, or more.

        Returns:
            A tensor of the layer's own shape.
        """
        where = self.dim + (not self.major)
        parts = parts.movedim(0, where)
        if chosen is not None:
            parts = parts.index_select(where, chosen)  # in the memory order of the result
        return parts.flatten(self.dim, self.dim + 1)


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

    def unlisted(self, listed: Tensor, like: Tensor) -> Tensor:
        """Undo :meth:`listed`."""
        del like
        return self.join(listed)

    def spread(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Bring every sentence's own values, shape ``(N, own...)``, to its rows."""
        del shape
        return self.join(values[:, None])

    def join(self, parts: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Undo :meth:`split`; what was padding is dropped.

        Args:
            parts: Shape ``(N, width, ...)``, or with 1 for the width.
            chosen: Where each sentence is among the parts.

        Returns:
            Shape ``(M, ...)``.
        """
        parts = parts if chosen is None else parts[chosen]
        whole = parts.expand(self.count, self.width, *parts.shape[2:])
        return whole.flatten(0, 1)[self._slots]


class Groups:
    """Which sentences share a perturbation.

    Args:
        rows: Numbers of each group's sentences.
        count: N.
        device: Of the tensors whose rows are the sentences'.

    Raises:
        ValueError: If a sentence is in no group, or in two.

    Attributes:
        count: K, how many groups.
        width: Number of sentences of the largest.
        sizes: Numbers of their sentences, shape ``(K,)``.
        of: Group of each sentence, shape ``(N,)``.
        slots: Place of each sentence among ``K width`` ones, shape ``(N,)``.
        order: The sentences in the order of their places, shape ``(N,)``.
    """

    def __init__(self, rows: Sequence[Sequence[int]], count: int, device: torch.device) -> None:
        if sorted(row for own in rows for row in own) != list(range(count)):
            raise ValueError(f"groups must name each of {count} sentences once, got {list(rows)}")
        self.count, self.width = len(rows), max(map(len, rows))
        places = {
            row: (group, place) for group, own in enumerate(rows) for place, row in enumerate(own)
        }
        of, place = torch.tensor([places[row] for row in range(len(places))], device=device).T
        self.of = of
        self.sizes = torch.tensor([len(own) for own in rows], device=device)
        self.slots = of * self.width + place
        self.order = self.slots.argsort()


class Grouped:
    """The groups are where the sentences are, each with the rows of its sentences.

    Args:
        sentences: Where these are.
        groups: Who is in which group.
    """

    def __init__(self, sentences: OfSentences, groups: Groups) -> None:
        self._sentences, self._groups = sentences, groups
        self.count = groups.count

    def split(self, rows: Tensor) -> Tensor:
        """Bring the groups to the front; smaller ones are filled with zeros.

        Args:
            rows: As for the layout of the sentences.

        Returns:
            Shape ``(K, width, ...)``.
        """
        parts = self._sentences.split(rows)
        places = self._groups.count * self._groups.width
        if places == len(parts):
            room = parts.index_select(0, self._groups.order)
        else:
            room = parts.new_zeros(places, *parts.shape[1:])
            room.index_copy_(0, self._groups.slots, parts)
        return room.view(self.count, self._groups.width, *parts.shape[1:])

    def listed(self, rows: Tensor, last: int) -> Tensor:
        """Split and flatten, as :func:`as_list` does."""
        return as_list(self.split(rows), last)

    def unlisted(self, listed: Tensor, like: Tensor) -> Tensor:
        """Undo :meth:`listed`."""
        shape = self._sentences.split(like).shape[1:]
        return self.join(listed.reshape(self.count, self._groups.width, *shape))

    def spread(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Bring every group's own values, shape ``(K, own...)``, to its sentences' rows."""
        return self._sentences.spread(values[self._groups.of], shape)

    def join(self, parts: Tensor) -> Tensor:
        """Undo :meth:`split`; what was filled in is dropped."""
        return self._sentences.join(parts.flatten(0, 1), self._groups.slots)


OfSentences = Strided | Packed
Layout = OfSentences | Grouped


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
