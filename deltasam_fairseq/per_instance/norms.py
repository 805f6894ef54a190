"""Squared norms of the sentences' gradients of one parameter, over all its uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.core.precision import wide
from deltasam_fairseq.per_instance.factors import (
    Dense,
    Form,
    Outer,
    Rows,
    Summed,
    inner,
)
from deltasam_fairseq.per_instance.memory_plan import Plan
from deltasam_fairseq.per_instance.perturbation import add_formed


@torch.no_grad()
def gathered(shape: torch.Size, forms: Sequence[Form | Summed], plan: Plan) -> list[Form | Summed]:
    """Form the sentences' gradients of a parameter where that is the cheaper way to keep them.

    Args:
        shape: Of the parameter.
        forms: Its gradients, at least one, one per use.
        plan: What is cheaper.

    Returns:
        The same gradients: as they were, or one :class:`Dense`.
    """
    uses = [form for form in forms if not isinstance(form, Summed)]
    if len(shape) < 2 or not plan.forms_gradients(uses, shape):
        return list(forms)
    first = uses[0]
    tensor = first.value if isinstance(first, Dense) else first.right
    total = torch.zeros(len(tensor), *shape, dtype=wide(tensor[:0]).dtype, device=tensor.device)
    for form in uses:
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
    parts = [_pair(use, use, plan) for use in forms]
    parts += [
        2 * _pair(use, other, plan) for place, use in enumerate(forms) for other in forms[:place]
    ]
    total = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
    return total.clamp_min(0)


@torch.no_grad()
def total_squares(
    gradients: Sequence[tuple[Sequence[Form | Summed], float]], plan: Plan, like: Tensor
) -> Tensor:
    """Add the squared norms of all parameters' gradients up.

    A GPU would spend its time on launching the kernels of one small layer after the other,
    so the layers of a shape are taken together, as many as a temporary's memory holds.

    Args:
        gradients: Of each parameter, at least one, one per use, and the factor of their
            squares. A :class:`Summed`
            is alone, and belongs to a weight that has the same factor and no other use.
        plan: How much memory products may take.
        like: A vector of length N, where the sum is wanted.

    Returns:
        Shape ``(N,)``, float64.
    """
    with_ones = {id(f.weight) for forms, _ in gradients for f in forms if isinstance(f, Summed)}
    outers: dict[Any, list[Outer]] = {}
    vectors: dict[Any, list[Tensor]] = {}
    found: dict[float, list[Tensor]] = {}
    for forms, factor in gradients:
        first = next(iter(forms))
        if len(forms) == 1 and isinstance(first, Outer):
            left, right = first.left, first.right
            kind = (left.shape, right.shape, left.dtype, right.dtype, left.device)
            outers.setdefault((factor, id(first) in with_ones, kind), []).append(first)
        elif len(forms) == 1 and isinstance(first, Dense) and first.value.dim() == 2:
            place = (factor, first.value.dtype, first.value.device)
            vectors.setdefault(place, []).append(first.value)
        elif not isinstance(first, Summed):
            uses = [f for f in forms if not isinstance(f, Summed)]
            found.setdefault(factor, []).append(squared_norms(uses, plan))
    for (factor, ones, _), alike in outers.items():
        found.setdefault(factor, []).extend(_together(alike, plan, ones=ones))
    for (factor, *_), values in vectors.items():
        whole = wide(torch.cat(values, 1))
        norms = torch.linalg.vector_norm(whole, dim=1, dtype=torch.float64)
        found.setdefault(factor, []).append(norms.square())
    total = torch.zeros_like(like, dtype=torch.float64)
    for factor, parts in found.items():
        whole = torch.stack([part.to(like.device) for part in parts]).sum(0)
        total = total.add(whole, alpha=factor)
    return total


def _together(forms: Sequence[Outer], plan: Plan, *, ones: bool) -> Iterator[Tensor]:
    """Take linear layers of one shape together; their biases too, as an input of one."""
    count, length, height = forms[0].left.shape
    width = forms[0].right.shape[2]
    size = count * length * (height + width + 3 * length)
    each = plan.rows(1, size, forms[0].left)
    if size > plan.rows(1, 1, forms[0].left):
        for form in forms:
            yield squared_norms([form], plan)
            if ones:
                yield squared_norms([Summed(form).formed()], plan)
        return
    for start in range(0, len(forms), each):
        some = forms[start : start + each]
        left, right = (
            _stacked(side) for side in zip(*((f.left, f.right) for f in some), strict=True)
        )
        lefts = torch.bmm(left, left.transpose(1, 2))
        if ones:
            rights = torch.baddbmm(right.new_ones(1, 1, 1), right, right.transpose(1, 2))
        else:
            rights = torch.bmm(right, right.transpose(1, 2))
        squares = lefts.mul_(rights).sum((1, 2)).view(len(some), count)
        yield squares.sum(0, dtype=torch.float64).clamp_min(0)


def _stacked(factors: Sequence[Tensor]) -> Tensor:
    return wide(torch.cat(list(factors)) if len(factors) > 1 else factors[0])


def _pair(one: Form, other: Form, plan: Plan) -> Tensor:
    if isinstance(one, Dense) or isinstance(other, Dense):
        return inner(one, other).double()
    length, count = one.right.shape[1], len(one.right)
    if count * length * other.right.shape[1] <= plan.rows(1, 1, one.right):
        return inner(one, other).double()
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
