"""One sentence's gradient of a parameter, kept as the factors that it is a product of.

Three forms, each for all N sentences at once; i is the sentence, t and s are
rows (tokens), and every function widens half precision to float32 first:

- :class:`Outer`: ``G_i = sum_t left_it right_itᵀ``, a linear layer's weight;
- :class:`Rows`: the same with ``left_it`` the unit vector of a token's id, an
  embedding's weight;
- :class:`Dense`: ``G_i`` itself, for parameters as small as a bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deltasam_fairseq.core.precision import wide


@dataclass(frozen=True)
class Outer:
    """Factors of a matrix of shape ``(a, b)``.

    Args:
        left: Shape ``(N, T, a)``, the gradient at a linear layer's output.
        right: Shape ``(N, T, b)``, its input.
    """

    left: Tensor
    right: Tensor

    def without(self, dropped: Tensor) -> Outer:
        """Return the factors with some sentences' set to zero; ``dropped`` is ``(N,)``."""
        return Outer(_zeroed(self.left, dropped), _zeroed(self.right, dropped))


@dataclass(frozen=True)
class Rows:
    """Rows that are added to a matrix of shape ``(V, b)``.

    Args:
        ids: Shape ``(N, T)``, which row.
        right: Shape ``(N, T, b)``, what is added there.
    """

    ids: Tensor
    right: Tensor

    def without(self, dropped: Tensor) -> Rows:
        """Return the rows with some sentences' set to zero; ``dropped`` is ``(N,)``."""
        return Rows(self.ids, _zeroed(self.right, dropped))


@dataclass(frozen=True)
class Dense:
    """The gradients themselves.

    Args:
        value: Shape ``(N, ...)`` with the parameter's own shape behind N.
    """

    value: Tensor

    def without(self, dropped: Tensor) -> Dense:
        """Return the gradients with some sentences' set to zero; ``dropped`` is ``(N,)``."""
        return Dense(_zeroed(self.value, dropped))


@dataclass(frozen=True)
class Summed:
    """Gradients of a linear layer's bias, ``sum_t left_it``, before they are summed.

    A bias is a column of the weight whose input is always one, so that with equal factors
    it needs no work of its own.

    Args:
        weight: The gradients of the weight in the same call.
    """

    weight: Outer

    def without(self, dropped: Tensor) -> Dense:
        """Return the gradients with some sentences' set to zero; ``dropped`` is ``(N,)``."""
        return self.formed().without(dropped)

    def formed(self) -> Dense:
        """Sum up."""
        return Dense(wide(self.weight.left).sum(1))


Form = Outer | Rows | Dense


def inner(one: Form, other: Form) -> Tensor:
    """Return the inner products of the sentences' gradients in two forms.

    Args:
        one: The gradient of one use of a parameter.
        other: That of another use of it, or the same.

    Returns:
        ``<G_i, H_i>``, shape ``(N,)``, float32 or wider.
    """
    if isinstance(one, Dense):
        return _inner_dense(wide(one.value), other)
    if isinstance(other, Dense):
        return _inner_dense(wide(other.value), one)
    if isinstance(one, Rows) and isinstance(other, Outer):
        one, other = other, one
    rights = torch.bmm(wide(one.right), wide(other.right).transpose(1, 2))
    return (left_products(one, other) * rights).sum((1, 2))


def add_weighted(total: Tensor, form: Form | Summed, shares: Tensor) -> None:
    """Add the sentences' gradients up, each times a number.

    Args:
        total: Of the parameter's shape, float32 or wider; ``sum_i p_i G_i`` is added to it.
        form: The gradients.
        shares: p, shape ``(N,)``, of the dtype of ``total``.
    """
    if isinstance(form, Dense):
        total.add_(torch.tensordot(shares, wide(form.value), 1))
        return
    if isinstance(form, Summed):
        total.add_(torch.einsum("n,nta->a", shares, wide(form.weight.left)))
        return
    # p goes to one factor: sum_it (p_i left_it) right_itᵀ is one product over all rows.
    right = (wide(form.right) * shares[:, None, None]).flatten(0, 1)
    if isinstance(form, Outer):
        total.addmm_(wide(form.left).flatten(0, 1).T, right)
    else:
        total.index_add_(0, form.ids.flatten(), right)


def left_products(one: Outer | Rows, other: Outer | Rows) -> Tensor:
    """Multiply the left factors of every two rows of a sentence.

    Args:
        one: Rows t.
        other: Rows s.

    Returns:
        ``left_it · left_is``, shape ``(N, T, S)``, float32 or wider.
    """
    if isinstance(one, Outer):
        if isinstance(other, Outer):
            return torch.bmm(wide(one.left), wide(other.left).transpose(1, 2))
        return wide(picked(one.left, other.ids))
    if isinstance(other, Outer):
        return wide(picked(other.left, one.ids)).transpose(1, 2)
    return same(one.ids, other.ids).to(wide(one.right).dtype)


def picked(left: Tensor, ids: Tensor) -> Tensor:
    """Pick columns: ``left[i, t, ids[i, s]]``.

    Args:
        left: Shape ``(N, T, V)``.
        ids: Shape ``(N, S)``.

    Returns:
        Shape ``(N, T, S)``.
    """
    return left.gather(2, ids[:, None, :].expand(-1, left.shape[1], -1))


def same(ids: Tensor, others: Tensor) -> Tensor:
    """Compare the ids of every two rows of a sentence.

    Args:
        ids: Shape ``(N, T)``.
        others: Shape ``(N, S)``.

    Returns:
        Boolean, shape ``(N, T, S)``.
    """
    return ids[:, :, None] == others[:, None, :]


def _inner_dense(value: Tensor, other: Form) -> Tensor:
    if isinstance(other, Dense):
        # As a product of vectors: nothing of the gradients' size is made.
        count = len(value)
        first, second = value.reshape(count, 1, -1), wide(other.value).reshape(count, -1, 1)
        return torch.bmm(first, second).view(-1)
    matrix = value.flatten(2)
    if isinstance(other, Outer):
        return (torch.bmm(wide(other.left), matrix) * wide(other.right)).sum((1, 2))
    at = other.ids[:, :, None].expand(-1, -1, matrix.shape[2])
    return (matrix.gather(1, at) * wide(other.right)).sum((1, 2))


def _zeroed(tensor: Tensor, dropped: Tensor) -> Tensor:
    mask = dropped.view(-1, *[1] * (tensor.dim() - 1))
    return tensor.masked_fill(mask, 0)
