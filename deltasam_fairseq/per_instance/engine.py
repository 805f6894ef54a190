"""Both passes of the exact per-instance perturbation, on whole batches.

The derivation, line by line, is in ``docs/per_instance.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from deltasam_fairseq.core.batches import checked_losses
from deltasam_fairseq.core.checks import not_negative
from deltasam_fairseq.core.precision import full_precision, is_half, wide
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.per_instance.errors import Unsupported
from deltasam_fairseq.per_instance.factors import Dense, Form, Summed, add_weighted
from deltasam_fairseq.per_instance.first_pass import Attributed, Recording, attributed
from deltasam_fairseq.per_instance.graph_check import refuse_unseen_uses
from deltasam_fairseq.per_instance.layout import Grouped, Groups, Layout
from deltasam_fairseq.per_instance.layout_memory import Recorded, Sites
from deltasam_fairseq.per_instance.memory_plan import Plan
from deltasam_fairseq.per_instance.norms import gathered, total_squares
from deltasam_fairseq.per_instance.perturbation import Perturbation, Scale
from deltasam_fairseq.per_instance.perturbed_pass import Perturbing
from deltasam_fairseq.per_instance.row_selection import Tables

#: From losses ``(N,)`` to the rows of each group's sentences; every row is in one group.
Dealing = Callable[[Tensor], Sequence[Sequence[int]]]


class Ascent:
    """Every sentence's perturbation, not formed: what the first pass found.

    With groups, K of them take the place of the N sentences in all but the losses.

    Args:
        losses: ``l_i(w)``, shape ``(N,)``, detached.
        norms: ``|T grad l_i(w)|``, shape ``(N,)``, float64; T is the identity
            unless a parameter group has a factor. Of a group, that of its sentences' sum.
        rho: Norm of each perturbation.
        records: The calls of the first pass.
        layouts: Where the sentences are in each.
        forms: Gradients of each parameter, by ``id``.
        engine: The engine.
        loss_scale: Factor that the gradients carry.
        groups: Who shares a perturbation; nobody when left out.

    The second pass covers the parameters that the first one did.

    Attributes:
        usable: Which sentences are perturbed, shape ``(N,)``: those whose norm is
            finite and not zero.
    """

    def __init__(
        self,
        losses: Tensor,
        norms: Tensor,
        *,
        rho: float,
        records: Sequence[Recorded],
        layouts: Sequence[Layout | None],
        forms: Mapping[int, list[Form | Summed]],
        engine: Engine,
        loss_scale: float,
        groups: Groups | None = None,
    ) -> None:
        self.losses = losses
        self.norms = norms
        self.usable = torch.isfinite(norms) & (norms > 0)
        self._rho = rho
        self._records = records
        self._layouts = layouts
        self._engine = engine
        self._space, self._names = engine.space, engine.names
        self._loss_scale = loss_scale
        self._groups = groups
        self._forms = dict(forms)
        if not self.usable.all():
            # Zero times a gradient that is not finite would not be zero.
            self._forms = {
                key: [f.without(~self.usable) for f in own] for key, own in forms.items()
            }

    @property
    def overflows(self) -> Tensor:
        """Whether a gradient is not finite though the losses are, as a boolean scalar."""
        fine = ~self._of_perturbations(~torch.isfinite(self.losses))
        found: Tensor = (fine & ~torch.isfinite(self.norms)).any()
        return found

    @property
    def mean_norms(self) -> Tensor:
        """Norms of the gradients of each perturbation's mean loss, shape ``(N,)``, float64."""
        return self.norms if self._groups is None else self.norms / self._groups.sizes

    def exclude(self, sentences: Tensor) -> None:
        """Perturb some sentences no longer, nor those that share their perturbation.

        Args:
            sentences: Boolean, shape ``(N,)``.
        """
        self.usable = self.usable & ~self._of_perturbations(sentences)

    def _of_perturbations(self, sentences: Tensor) -> Tensor:
        """Tell of each perturbation whether one of its sentences is meant."""
        if self._groups is None:
            return sentences
        counts = torch.zeros_like(self.usable, dtype=torch.int64)
        return counts.index_add(0, self._groups.of, sentences.long()) > 0

    @torch.no_grad()
    def weighted_gradient(self, shares: Tensor) -> list[Tensor | None]:
        """Add the sentences' gradients up, each times a number, without a backward pass.

        Args:
            shares: p, shape ``(N,)``; that of a sentence that is not usable has no effect.

        Returns:
            ``sum_i p_i grad l_i(w)`` for each parameter of the engine's space, without the loss
            scale, float32 or wider; ``None`` where no sentence has a gradient.
        """
        shares = torch.where(self.usable, shares.double() / self._loss_scale, 0.0)
        found: list[Tensor | None] = []
        with full_precision(self._space):
            for param in self._space:
                forms = self._forms.get(id(param))
                total = None
                if forms:
                    total = torch.zeros_like(wide(param.detach()))
                    for form in forms:
                        add_weighted(total, form, shares.to(total))
                found.append(total)
        return found

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Let each sentence of a forward pass see its own perturbed parameters.

        The pass must repeat the first one: same batch, same random state. Its
        backward pass, which belongs after the block, gives ordinary gradients of
        the parameters, summed over the sentences.

        Yields:
            Nothing.

        Refusals:
            ``Unsupported`` if the pass differs from the first one.
        """
        with Perturbing(self._names, self._records, self._layouts, self._moved()) as watch:
            yield
        watch.finish()

    def _moved(self) -> dict[int, Perturbation]:
        scale = self._rho / (self.norms * self._loss_scale)
        scale = torch.where(self.usable, scale, 0.0)
        scales: dict[Any, Scale] = {}
        vectors: dict[Any, list[tuple[Tensor, Dense]]] = {}
        moved = {}
        for param in self._space if self._rho else ():
            forms = self._forms.get(id(param))
            if not forms:
                continue
            factor = self._space.factor(param)
            kind = (param.device, torch.float32 if is_half(param) else param.dtype)
            place = (factor, kind)
            if place not in scales:
                scales[place] = Scale((scale * factor**2).to(*kind))
            form = forms[0]
            if len(forms) == 1 and isinstance(form, Dense) and param.dim() == 1:
                vectors.setdefault(place, []).append((param, form))
            else:
                own = scales[place]
                moved[id(param)] = Perturbation(param.shape, forms, own, self._engine.plan)
        for place, alike in vectors.items():
            # All biases at once.
            own = scales[place]
            whole = torch.cat([form.value for _, form in alike], 1).to(own.values.dtype)
            whole = whole.mul_(own.values[:, None])
            parts = torch.split(whole, [form.value.shape[1] for _, form in alike], 1)
            for (param, form), part in zip(alike, parts, strict=True):
                moved[id(param)] = Perturbation(
                    param.shape, [form], own, self._engine.plan, formed=part
                )
        return moved


class Engine:
    """The batched engine for one model; keep it, it learns the model's layouts.

    Args:
        model: The model.
        params: The parameters that are perturbed, or their
            :class:`~deltasam_fairseq.core.weight_space.WeightSpace`; all of the model's
            when left out. Each ascent covers those of them that train at that
            moment, so that layers may be frozen and unfrozen between steps.
        plan: Memory limit and constants of the choice among products.

    Raises:
        Unsupported: If the neighbourhood is adaptive.
    """

    def __init__(
        self, model: nn.Module, params: Sequence[Tensor] | None = None, *, plan: Plan | None = None
    ) -> None:
        self._model = model
        self._given = None if params is None else WeightSpace.of(params)
        self.plan = plan or Plan()
        self.sites = Sites()
        self._tables = Tables()
        self._refuse_adaptive()

    def perturb(self, params: Sequence[Tensor]) -> None:
        """Perturb other parameters from now on; what is known of the model's layouts stays.

        Args:
            params: The parameters, or their space.
        """
        self._given = WeightSpace.of(params)
        self._refuse_adaptive()

    def _refuse_adaptive(self) -> None:
        self._cover()
        if self.space.is_adaptive:
            raise Unsupported("adaptive neighbourhoods have no batched perturbation")

    def _cover(self) -> None:
        """Find the parameters that train now."""
        named = dict(self._model.named_parameters())
        training = [p for p in named.values() if p.requires_grad]
        self.space = WeightSpace.of(training) if self._given is None else self._given
        called = {id(p): name for name, p in named.items()}
        self.names = {
            id(p): called.get(id(p), f"parameter {n}")
            for n, p in enumerate(self.space)
            if self.space.factor(p) and p.requires_grad
        }

    @torch.enable_grad()
    def ascend(
        self,
        losses_function: Callable[[], Tensor],
        *,
        rho: float,
        loss_scale: float = 1.0,
        groups: Dealing | None = None,
    ) -> Ascent:
        """Run the first pass: losses, norms and perturbations of all sentences.

        Args:
            losses_function: One forward pass of the batch, shape ``(N,)``.
            rho: L2 norm of each sentence's perturbation, at least 0.
            loss_scale: Factor on the losses in the backward pass, for gradients of
                half precision.
            groups: Says, from the losses, which sentences share a perturbation, that of
                the sum of their losses; every sentence has its own when left out.

        Returns:
            The ascent; no ``.grad`` was touched.

        Refusals:
            ``Unsupported`` if the perturbation would not be exact; a ``ValueError`` if the
            losses are not a vector.

        Cost:
            1 forward pass and 1 backward pass without weight gradients. One more
            backward pass finds out which rows are whose: on the first batches and on
            every 64th, and on every batch for the layers behind rows that were
            picked by a mask or an index.
        """
        rho = not_negative(rho, "rho")
        self._cover()
        with Recording(self.names, self._tables) as watch:
            losses = checked_losses(losses_function(), least=0)
        refuse_unseen_uses(losses, watch.stand_ins.values(), self.names)
        watch.stand_ins.clear()
        forms: dict[int, list[Form | Summed]] = {}
        found = attributed(losses, watch, self.sites, loss_scale=loss_scale) if len(losses) else []
        layouts: list[Layout | None] = [one.layout for one in found or ()]
        shared = None
        if groups is not None and len(losses):
            shared = Groups(groups(losses.detach()), len(losses), losses.device)
            layouts = [
                None if one.layout is None else Grouped(one.layout, shared) for one in found or ()
            ]
        like = losses.detach() if shared is None else losses.new_zeros(shared.count)
        if found is None:
            squares = torch.full_like(like, torch.nan, dtype=torch.float64)
        else:
            forms = self._collected(watch.records, found, layouts)
            squares = self._measured(forms, like)
        return Ascent(
            losses.detach(),
            squares.sqrt() / loss_scale,
            rho=rho,
            records=watch.records,
            layouts=layouts,
            forms=forms,
            engine=self,
            loss_scale=loss_scale,
            groups=shared,
        )

    @torch.no_grad()
    def _collected(
        self,
        records: Sequence[Recorded],
        found: list[Attributed],
        layouts: Sequence[Layout | None],
    ) -> dict[int, list[Form | Summed]]:
        """Turn what the passes left into each parameter's gradients, and let go of the rest."""
        forms: dict[int, list[Form | Summed]] = {}
        found.reverse()
        for record, layout in zip_longest(records, layouts):
            delta = found.pop().delta if found else None
            if delta is not None and layout is not None:
                with full_precision(self.space):
                    gradients = record.call.rule.gradients(record.call, delta, layout)
                for role, form in gradients.items():
                    param = record.call.params.get(role)
                    if param is not None and id(param) in self.names:
                        _append(forms.setdefault(id(param), []), form)
            record.forget()
        return forms

    @torch.no_grad()
    def _measured(self, forms: dict[int, list[Form | Summed]], like: Tensor) -> Tensor:
        """Add the squared norms of all parameters' gradients up; forms some of them."""
        own = {id(param): self.space.factor(param) for param in self.space}
        with full_precision(self.space):
            for param in self.space:
                if id(param) in forms:
                    forms[id(param)] = gathered(param.shape, forms[id(param)], self.plan)
            _sum_up(forms, own)
            kept = [(forms[key], factor**2) for key, factor in own.items() if key in forms]
            return total_squares(kept, self.plan, like)


def _append(uses: list[Form | Summed], form: Form | Summed) -> None:
    """Add one use's gradients to a parameter's; what is formed is one sum."""
    last = uses[-1] if uses else None
    if isinstance(form, Dense) and isinstance(last, Dense):
        uses[-1] = Dense(last.value + form.value)
    else:
        uses.append(form)


def _sum_up(forms: dict[int, list[Form | Summed]], factors: Mapping[int, float]) -> None:
    """Form gradients of biases that are no column of a weight's."""
    weights = {id(own[0]): factors[key] for key, own in forms.items() if len(own) == 1}
    for key, own in forms.items():
        for place, form in enumerate(own):
            if isinstance(form, Summed) and (
                len(own) > 1 or weights.get(id(form.weight)) != factors[key]
            ):
                own[place] = form.formed()
