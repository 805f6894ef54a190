"""Squared norms of the sentences' gradients of one parameter, over all its uses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltasam_fairseq.core.per_instance.factors import Dense, Form, Outer, Rows, inner
from deltasam_fairseq.core.precision import wide
from deltasam_fairseq.core.per_instance.perturbation import add_formed
from deltasam_fairseq.core.per_instance.strategy import Plan


@torch.no_grad()
def gathered(shape: torch.Size, forms: Sequence[Form], plan: Plan) -> list[Form]:
    """Form the sentences' gradients of a parameter where that is the cheaper way to keep them.

    Args:
        shape: Of the parameter.
        forms: Its gradients, at least one, one per use.
        plan: What is cheaper.

    Returns:
        The same gradients: as they were, or one :class:`Dense`.
    """
    if len(shape) < 2 or not plan.forms_gradients(forms, shape):
        return list(forms)
    first = next(iter(forms))
    tensor = first.value if isinstance(first, Dense) else first.right
    total = torch.zeros(len(tensor), *shape, dtype=wide(tensor[:0]).dtype, device=tensor.device)
    for form in forms:
        add_formed(form, total)
    return [Dense(total)]


@torch.no_grad()
def squared_norms(forms: Sequence[Form], plan: Plan) -> Tensor:
    """Add a parameter's uses up and take the norm.

    ``|sum_u G_iu|^2`` is the sum over all pairs of uses of their inner products.

    Args:
        forms: The gradients, at least one.
        plan: How much memory products may take.

    Returns:
        Shape ``(N,)``, float64.
    """
    total: Tensor | float = 0.0
    for place, use in enumerate(forms):
        total = total + _pair(use, use, plan)
        for other in forms[:place]:
            total = total + 2 * _pair(use, other, plan)
    return torch.as_tensor(total).clamp_min(0)


def _pair(one: Form, other: Form, plan: Plan) -> Tensor:
    if isinstance(one, Dense) or isinstance(other, Dense):
        return inner(one, other).double()
    length, count = one.right.shape[1], len(one.right)
    step = min(max(1, length), plan.rows(1, other.right.shape[1], one.right))
    parts = []
    for sentences in plan.sentences(count, step * other.right.shape[1], one.right):
        second = _part(other, sentences, slice(None))
        rows = [
            inner(_part(one, sentences, slice(t, t + step)), second).double()
            for t in range(0, length, step)
        ]
        parts.append(torch.stack(rows).sum(0))
    return torch.cat(parts)


def _part(form: Outer | Rows, sentences: slice, rows: slice) -> Outer | Rows:
    right = form.right[sentences, rows]
    if isinstance(form, Outer):
        return Outer(form.left[sentences, rows], right)
    return Rows(form.ids[sentences, rows], right)
