"""Every sentence's perturbation of one parameter, applied without being formed.

``eps_i = c_i sum_u G_iu`` over the uses u of the parameter, with ``c_i`` rho
over the norm of sentence i's whole gradient. Nothing here is differentiated:
eps is held constant, and a product with it has its transpose as derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from deltasam_fairseq.core.precision import full_precision, wide
from deltasam_fairseq.per_instance.factors import (
    Dense,
    Form,
    Outer,
    Rows,
    Summed,
    picked,
    same,
)
from deltasam_fairseq.per_instance.memory_plan import Plan


class Scale:
    """``c_i`` in the shapes that products take it in, made once for all layers.

    Args:
        values: Shape ``(N,)``, float32 or wider.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.columns = values.view(-1, 1, 1)
        self.one = values.new_ones(1, 1, 1)


class Perturbation:
    """The perturbation of one parameter, for all sentences.

    Args:
        shape: Of the parameter.
        forms: The sentences' gradients, at least one, one per use.
        scale: ``c_i``, shape ``(N,)``, float32 or wider; or made for all layers.
        plan: How much memory products may take.
        formed: The perturbations themselves, where they were formed with others'.
    """

    def __init__(
        self,
        shape: torch.Size,
        forms: Sequence[Form | Summed],
        scale: Tensor | Scale,
        plan: Plan,
        *,
        formed: Tensor | None = None,
    ) -> None:
        self.shape = shape
        self._sums = [form for form in forms if isinstance(form, Summed)]
        self.forms = [form for form in forms if not isinstance(form, Summed)]
        self._shared = scale if isinstance(scale, Scale) else Scale(scale)
        self.scale = self._shared.values
        self.plan = plan
        self._formed = formed
        self._ones: Tensor | None = None

    def goes_with(self, weight: Perturbation) -> bool:
        """Tell whether this, a bias's, is a column of a weight's whose input is one."""
        if self.forms or len(self._sums) != 1 or self.scale is not weight.scale:
            return False
        return len(weight.forms) == 1 and self._sums[0].weight is weight.forms[0]

    def with_ones(self) -> Perturbation:
        """Return a linear layer's perturbation of weight and bias, from the weight's."""
        both = Perturbation(self.shape, self.forms, self._shared, self.plan)
        both._ones = self._shared.one
        return both

    def transposed(self) -> Perturbation:
        """Return the perturbation of the transpose of a matrix."""
        height, width = self.shape
        forms: list[Form | Summed] = []
        for form in self.forms:
            if isinstance(form, Outer):
                forms.append(Outer(form.right, form.left))
            elif isinstance(form, Dense):
                forms.append(Dense(form.value.transpose(1, 2)))
            else:
                total = self.scale.new_zeros(len(self.scale), height, width)
                add_formed(form, total)
                forms.append(Dense(total.transpose(1, 2)))
        return Perturbation(torch.Size((width, height)), forms, self._shared, self.plan)

    @property
    def merges(self) -> bool:
        """Whether ``w + eps_i`` is multiplied by, piece by piece, and not each of them."""
        return all(isinstance(form, Dense) for form in self.forms)

    def add_product(self, x: Tensor, onto: Tensor, weight: Tensor | None = None) -> None:
        """Multiply every sentence's rows by its own perturbation of a matrix.

        Args:
            x: Shape ``(N, T, b)``, float32 or wider.
            onto: What ``x_i eps_iᵀ`` is added to in place, shape ``(N, T, a)``.
            weight: ``w``, shape ``(a, b)``; where given, ``x_i (w + eps_i)ᵀ`` is added.
        """
        if weight is None:
            self._in_blocks(x, onto, partial(_add_product, ones=self._ones))
            return
        for sentences, heights in self._pieces():
            own = self._merged(weight, sentences, heights)
            onto[sentences, :, heights].baddbmm_(x[sentences], own.transpose(1, 2))

    def add_back_product(self, delta: Tensor, onto: Tensor, weight: Tensor | None = None) -> None:
        """Multiply by the transposes: what :meth:`add_product` does to gradients.

        Args:
            delta: Shape ``(N, T, a)``, float32 or wider.
            onto: What ``delta_i eps_i`` is added to in place, shape ``(N, T, b)``.
            weight: ``w``, shape ``(a, b)``; where given, ``delta_i (w + eps_i)`` is added.
        """
        if weight is None:
            self._in_blocks(delta, onto, _add_back_product)
            return
        for sentences, heights in self._pieces():
            own = self._merged(weight, sentences, heights)
            onto[sentences].baddbmm_(delta[sentences, :, heights], own)

    def picked_rows(self, ids: Tensor) -> Tensor:
        """Look rows of every sentence's own perturbation of a matrix up.

        Args:
            ids: Shape ``(N, T)``.

        Returns:
            ``eps_i[ids_it]``, shape ``(N, T, b)``, float32 or wider.
        """
        width = self.shape[1:].numel()
        total = self.scale.new_zeros(*ids.shape, width)
        for form in self.forms:
            for rows in self._blocks(ids, form):
                total[:, rows] += _picked_rows(form, ids[:, rows])
        return total.mul_(self.scale[:, None, None])

    def dense(self) -> Tensor:
        """Form the perturbations.

        Returns:
            Shape ``(N, ...)`` with the parameter's behind N, float32 or wider.
        """
        if self._formed is not None:
            return self._formed
        total = self.scale.new_zeros(len(self.scale), *self.shape)
        for form in (*self.forms, *(sums.formed() for sums in self._sums)):
            add_formed(form, total)
        return total.mul_(self.scale.view(-1, *[1] * len(self.shape)))

    def _in_blocks(
        self, x: Tensor, onto: Tensor, add: Callable[[Form, Tensor, Tensor, Tensor], None]
    ) -> None:
        scale = self._shared.columns.to(x.dtype)
        for form in self.forms:
            blocks = self._blocks(x, form)
            for rows in blocks:
                some, there = (x, onto) if len(blocks) == 1 else (x[:, rows], onto[:, rows])
                add(form, some, there, scale)

    def _blocks(self, x: Tensor, form: Form) -> list[slice]:
        """Cut rows so that their products with a form's rows fit the memory."""
        length = x.shape[1]
        if isinstance(form, Dense):
            return [slice(None)]
        step = self.plan.rows(len(x), form.right.shape[1], self.scale)
        return [slice(first, first + step) for first in range(0, length, step)]

    def _pieces(self) -> list[tuple[slice, slice]]:
        """Cut sentences, and of a large matrix heights, so that ``w + eps_i`` fits the memory."""
        height, width = self.shape
        step = self.plan.rows(1, width, self.scale)
        heights = [slice(first, first + step) for first in range(0, height, step)]
        each = min(step, height) * width
        cuts = self.plan.sentences(len(self.scale), each, self.scale)
        return [(sentences, own) for sentences in cuts for own in heights]

    def _merged(self, weight: Tensor, sentences: slice, heights: slice) -> Tensor:
        total = weight[heights]
        scale = self.scale[sentences, None, None].to(weight.dtype)
        for form in self.forms:
            if isinstance(form, Dense):
                total = torch.addcmul(total, wide(form.value[sentences, heights]), scale)
        return total


def add_formed(form: Form, total: Tensor) -> None:
    """Add every sentence's gradient up, formed.

    Args:
        form: The gradients.
        total: What they are added to in place, shape ``(N, ...)``, float32 or wider.
    """
    if isinstance(form, Dense):
        total += form.value
        return
    matrix, right = total.flatten(2), wide(form.right)
    if isinstance(form, Rows):
        matrix.scatter_add_(1, form.ids[:, :, None].expand_as(right), right)
        return
    with full_precision([right]):
        matrix.baddbmm_(wide(form.left).transpose(1, 2), right)


def _add_product(
    form: Form, x: Tensor, onto: Tensor, scale: Tensor, *, ones: Tensor | None
) -> None:
    if isinstance(form, Dense):
        onto.baddbmm_(x * scale, wide(form.value).transpose(1, 2))
        return
    right = wide(form.right).transpose(1, 2)
    weights = torch.bmm(x, right) if ones is None else torch.baddbmm(ones, x, right)
    weights.mul_(scale)
    if isinstance(form, Outer):
        onto.baddbmm_(weights, wide(form.left))
    else:
        onto.scatter_add_(2, form.ids[:, None, :].expand_as(weights), weights)


def _add_back_product(form: Form, delta: Tensor, onto: Tensor, scale: Tensor) -> None:
    if isinstance(form, Dense):
        onto.baddbmm_(delta * scale, wide(form.value))
        return
    if isinstance(form, Outer):
        weights = torch.bmm(delta, wide(form.left).transpose(1, 2))
    else:
        weights = picked(delta, form.ids)
    onto.baddbmm_(weights.mul_(scale), wide(form.right))


def _picked_rows(form: Form, ids: Tensor) -> Tensor:
    if isinstance(form, Dense):
        matrix = wide(form.value).flatten(2)
        return matrix.gather(1, ids[:, :, None].expand(-1, -1, matrix.shape[2]))
    right = wide(form.right)
    if isinstance(form, Outer):
        left = wide(picked(form.left, ids)).transpose(1, 2)
    else:
        left = same(ids, form.ids).to(right.dtype)
    with full_precision([right]):
        return torch.bmm(left, right)
