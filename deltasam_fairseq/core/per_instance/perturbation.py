"""Every sentence's perturbation of one parameter, applied without being formed.

``eps_i = c_i sum_u G_iu`` over the uses u of the parameter, with ``c_i`` rho
over the norm of sentence i's whole gradient. Nothing here is differentiated
but the activations that are multiplied: eps is held constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltasam_fairseq.core.per_instance.factors import (
    Dense,
    Form,
    Outer,
    Rows,
    picked,
    same,
    wide,
)
from deltasam_fairseq.core.per_instance.strategy import Plan
from deltasam_fairseq.core.precision import full_precision


class Perturbation:
    """The perturbation of one parameter, for all sentences.

    Args:
        shape: Of the parameter.
        forms: The sentences' gradients, at least one, one per use.
        scale: ``c_i``, shape ``(N,)``, float32 or wider.
        plan: How products are formed.
    """

    def __init__(self, shape: torch.Size, forms: Sequence[Form], scale: Tensor, plan: Plan) -> None:
        self.shape = shape
        self.forms = list(forms)
        self.scale = scale
        self.plan = plan

    def merges(self) -> bool:
        """Tell whether ``w + eps_i`` should be formed to multiply by it.

        Returns:
            Whether that is cheaper than :meth:`product`.
        """
        return self.plan.forms_matrices(sum(self._lengths()), self.shape, self.scale)

    def product(self, x: Tensor, *, onto: Tensor | None = None) -> Tensor:
        """Multiply every sentence's rows by its own perturbation of a matrix.

        Args:
            x: Shape ``(N, T, b)``, float32 or wider.
            onto: What to add it to, shape ``(N, T, a)``.

        Returns:
            ``x_i eps_iᵀ``, a new tensor of shape ``(N, T, a)``.
        """
        longest = max(self._lengths(), default=1)
        step = self.plan.rows(x, longest)
        with full_precision([x]):
            if step >= x.shape[1]:
                return self._product(x, onto)
            cuts = [slice(t, t + step) for t in range(0, x.shape[1], step)]
            totals = [None if onto is None else onto[:, cut] for cut in cuts]
            pairs = zip(cuts, totals, strict=True)
            return torch.cat([self._product(x[:, cut], total) for cut, total in pairs], dim=1)

    def _product(self, x: Tensor, total: Tensor | None) -> Tensor:
        scale = self.scale[:, None, None].to(x.dtype)
        for form in self.forms:
            if isinstance(form, Rows):
                weights = torch.bmm(x, wide(form.right).transpose(1, 2)).mul_(scale)
                at = form.ids[:, None, :].expand_as(weights)
                if total is None:
                    total = x.new_zeros(*x.shape[:2], self.shape[0])
                total = total.scatter_add(2, at, weights)
                continue
            if isinstance(form, Dense):
                weights, right = x * scale, wide(form.value).transpose(1, 2)
            else:
                weights = torch.bmm(x, wide(form.right).transpose(1, 2)).mul_(scale)
                right = wide(form.left)
            if total is None:
                total = torch.bmm(weights, right)
            else:
                total = torch.baddbmm(total, weights, right)
        return _some(total)

    def picked_rows(self, ids: Tensor) -> Tensor:
        """Look rows of every sentence's own perturbation of a matrix up.

        Args:
            ids: Shape ``(N, T)``.

        Returns:
            ``eps_i[ids_it]``, shape ``(N, T, b)``, float32 or wider.
        """
        total: Tensor | None = None
        for form in self.forms:
            if isinstance(form, Dense):
                matrix = wide(form.value).flatten(2)
                part = matrix.gather(1, ids[:, :, None].expand(-1, -1, matrix.shape[2]))
            else:
                right = wide(form.right)
                if isinstance(form, Outer):
                    left = wide(picked(form.left, ids)).transpose(1, 2)
                else:
                    left = same(ids, form.ids).to(right.dtype)
                with full_precision([right]):
                    part = torch.bmm(left, right)
            total = part if total is None else total + part
        return _some(total) * self.scale[:, None, None]

    def dense(self) -> Tensor:
        """Form the perturbations.

        Returns:
            Shape ``(N, ...)`` with the parameter's behind N, float32 or wider.
        """
        zero = self.scale.new_zeros(self.shape)
        if len(self.shape) < 2:
            total = zero.expand(len(self.scale), *self.shape)
            for form in self.forms:
                if isinstance(form, Dense):
                    total = total + wide(form.value)
            return total * self.scale.view(-1, *[1] * len(self.shape))
        return self.added_to(zero.flatten(1), slice(None)).view(-1, *self.shape)

    def added_to(self, matrix: Tensor, sentences: slice) -> Tensor:
        """Form ``w + eps_i`` for some sentences.

        Args:
            matrix: ``w``, shape ``(a, b)``, float32 or wider.
            sentences: Which.

        Returns:
            Shape ``(n, a, b)``.
        """
        scale = self.scale[sentences, None, None].to(matrix.dtype)
        total = matrix.expand(len(scale), -1, -1)
        for form in self.forms:
            if isinstance(form, Dense):
                total = total + wide(form.value[sentences]).flatten(2) * scale
                continue
            right = wide(form.right[sentences]) * scale
            if isinstance(form, Outer):
                left = wide(form.left[sentences]).transpose(1, 2)
                with full_precision([right]):
                    total = torch.baddbmm(total, left, right)
            else:
                at = form.ids[sentences, :, None].expand_as(right)
                total = total.scatter_add(1, at, right)
        return total

    def _lengths(self) -> list[int]:
        return [f.right.shape[1] for f in self.forms if not isinstance(f, Dense)]


def _some(total: Tensor | None) -> Tensor:
    if total is None:
        raise ValueError("a perturbation needs at least one form")
    return total
