"""Squared norms of the sentences' gradients of one parameter, over all its uses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltasam_fairseq.core.per_instance.factors import Dense, Form, Outer, Rows, inner, wide
from deltasam_fairseq.core.per_instance.strategy import Plan


@torch.no_grad()
def squared_norms(shape: torch.Size, forms: Sequence[Form], plan: Plan) -> Tensor:
    """Add a parameter's uses up and take the norm.

    ``|sum_u G_iu|^2`` is the sum over all pairs of uses of their inner products;
    linear layers that share a matrix are one use with all their rows.

    Args:
        shape: Of the parameter.
        forms: The gradients, at least one.
        plan: How products are formed.

    Returns:
        Shape ``(N,)``, float64.
    """
    outers = [f for f in forms if isinstance(f, Outer)]
    uses: list[Form] = [f for f in forms if not isinstance(f, Outer)]
    if len(outers) > 1:
        left = torch.cat([wide(f.left) for f in outers], dim=1)
        uses.append(Outer(left, torch.cat([wide(f.right) for f in outers], dim=1)))
    uses += outers[:1] if len(outers) == 1 else []
    total: Tensor | float = 0.0
    for place, use in enumerate(uses):
        total = total + _pair(use, use, shape, plan)
        for other in uses[:place]:
            total = total + 2 * _pair(use, other, shape, plan)
    return torch.as_tensor(total).clamp_min(0)


def _pair(one: Form, other: Form, shape: torch.Size, plan: Plan) -> Tensor:
    if isinstance(one, Outer) and one is other and plan.forms_gradients(one.left.shape[1], shape):
        return _formed(one, plan)
    if isinstance(one, Dense) or isinstance(other, Dense):
        return inner(one, other).double()
    return _by_rows(one, other, plan)


def _by_rows(one: Outer | Rows, other: Outer | Rows, plan: Plan) -> Tensor:
    count, length = one.right.shape[:2]
    each = length * other.right.shape[1]
    parts = []
    for sentences in plan.sentences(count, each, one.right):
        first, second = _of(one, sentences), _of(other, sentences)
        step = max(1, length * plan.memory // max(1, each * one.right.element_size()))
        rows = [_rows(first, slice(t, t + step)) for t in range(0, length, step)]
        parts.append(torch.stack([inner(part, second).double() for part in rows]).sum(0))
    return torch.cat(parts)


def _formed(use: Outer, plan: Plan) -> Tensor:
    count, _, height = use.left.shape
    width = use.right.shape[2]
    columns = max(1, min(height, plan.memory // max(1, width * use.right.element_size())))
    parts = []
    for sentences in plan.sentences(count, columns * width, use.right):
        right = wide(use.right[sentences])
        squares = []
        for first in range(0, height, columns):
            left = wide(use.left[sentences, :, first : first + columns])
            gradient = torch.bmm(left.transpose(1, 2), right)
            squares.append(gradient.square().sum((1, 2)).double())
        parts.append(torch.stack(squares).sum(0))
    return torch.cat(parts)


def _of(form: Outer | Rows, sentences: slice) -> Outer | Rows:
    if isinstance(form, Outer):
        return Outer(form.left[sentences], form.right[sentences])
    return Rows(form.ids[sentences], form.right[sentences])


def _rows(form: Outer | Rows, rows: slice) -> Outer | Rows:
    if isinstance(form, Outer):
        return Outer(form.left[:, rows], form.right[:, rows])
    return Rows(form.ids[:, rows], form.right[:, rows])
