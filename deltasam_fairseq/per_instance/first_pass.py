"""The pass at w: uses are recorded, and their gradients given to sentences.

Parameters keep ``requires_grad``, so that the graph shows every path to them,
but only the gradients at the layers' outputs are asked for: autograd then
computes no weight gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from deltasam_fairseq.core.precision import wide
from deltasam_fairseq.core.vectors import grouped, norms
from deltasam_fairseq.per_instance.errors import AmbiguousBatch, Unsupported
from deltasam_fairseq.per_instance.layout import OfSentences, Strided
from deltasam_fairseq.per_instance.layout_memory import Recorded, Site, Sites
from deltasam_fairseq.per_instance.record_uses import Watch, owned
from deltasam_fairseq.per_instance.row_owners import COARSE, FINE, Probe, answer, factors
from deltasam_fairseq.per_instance.row_selection import MAY_PICK, Tables, picks_rows
from deltasam_fairseq.per_instance.rules.base import Call
from deltasam_fairseq.per_instance.rules.shared import Spread, Whole


class Recording(Watch):
    """A forward pass that keeps what each use of a parameter acted on.

    Args:
        names: Names of the covered parameters by ``id``.
        tables: Constants of earlier batches that rows were looked up in.

    Attributes:
        picks: Whether rows were picked by what is in the batch, up to now.
    """

    def __init__(self, names: Mapping[int, str], tables: Tables) -> None:
        super().__init__(names)
        self.tables = tables
        self.picks = False
        self.records: list[Recorded] = []
        self._uses: Counter[Site] = Counter()

    def pass_by(  # noqa: D102 - the base class says it
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        # Asked every time: behind a pick, too, tables become known.
        if func in MAY_PICK:
            self.picks |= picks_rows(func, args, kwargs, self.tables)

    def use(self, call: Call, *, spreads: Iterable[int] = ()) -> tuple[Tensor, int]:  # noqa: D102
        params = {role: self.stand_in(param) for role, param in call.params.items()}
        output = owned(call.rule.forward(call, params))
        names = tuple(self.names.get(id(p)) for p in call.params.values())
        place: Site = (type(call.rule), names, output.dim())
        number = len(self.records)
        self._uses[place] += 1
        call.input = call.input.detach()
        self.records.append(
            Recorded(
                call,
                site=(*place, self._uses[place]),
                edge=get_gradient_edge(output),
                input_shape=call.input.shape,
                shape=output.shape,
                stride=_dense_strides(output),
                dtype=output.dtype,
                version=call.input._version,
                picked=self.picks,
            )
        )
        for source in spreads:
            self.records[source].spread.append(number)
        return output, number

    def describe(self, record: Recorded) -> str:
        """Name a call by its parameters."""
        params = [p for p in record.call.params.values() if self.covered(p)]
        return " and ".join(map(self.name, params))


def _dense_strides(output: Tensor) -> tuple[int, ...]:
    """Return the strides of a tensor or, where entries share memory, of a copy like it."""
    if 0 not in output.stride():
        return output.stride()
    return torch.empty_like(output, device="meta").stride()


class Attributed(NamedTuple):
    """The gradient at one call's output, and whose it is.

    Attributes:
        delta: Of the sum of losses; ``None`` if they do not depend on it or if
            other calls take its place.
        layout: Where the sentences are; ``None`` if nothing tells and there is
            no gradient.
    """

    delta: Tensor | None
    layout: OfSentences | None


def attributed(
    losses: Tensor, watch: Recording, sites: Sites, *, loss_scale: float
) -> list[Attributed] | None:
    """Run the backward pass of the sum of losses, and find out whose rows are whose.

    Args:
        losses: Shape ``(N,)``, N > 0, with their graph, which is used up.
        watch: Their forward pass.
        sites: What is known from earlier batches; learns from this one.
        loss_scale: Factor on the losses, to keep half-precision gradients in range.

    Returns:
        One for each record; ``None`` if the loss scale left nothing but infinities.

    Raises:
        Unsupported: If rows cannot be given to sentences.
    """
    records = watch.records
    for record in records:
        if record.call.input._version != record.version:
            raise Unsupported(
                f"the input of {watch.describe(record)} was overwritten in place afterwards"
            )
    count = losses.numel()
    sites.begin()
    known = [sites.settled(record, count) for record in records]
    asked = [
        number
        for number, layout in enumerate(known)
        if layout is None and _where_spread(records, number, known) != {True}
    ]
    deltas = _gradients(losses.sum() * loss_scale, records, keep=bool(asked))
    if count > 1:
        _refuse_what_is_not_spread(records, deltas)
    probed: dict[int, Probe] = {}
    coarse = any(record.dtype.itemsize < 4 for record in records)
    if asked:
        weights = factors(count, losses.detach())
        again = _gradients((losses * weights).sum() * loss_scale, [records[n] for n in asked])
        # Of all layers: those that are asked about may have gradients of rounding alone.
        largest = _largest([g for g in (*again, *deltas) if g is not None], losses)
        for number, gradient in zip(asked, again, strict=True):
            delta = deltas[number]
            if delta is not None and gradient is not None:
                probed[number] = Probe(
                    delta,
                    gradient,
                    weights,
                    rows=records[number].rows,
                    largest=largest,
                    coarse=coarse,
                )
    elsewhere = _learn(watch, deltas, list(probed.values()), coarse=coarse)
    found: dict[int, Attributed] = {}
    # What is spread is looked at after what it is spread to.
    for number in sorted(range(len(records)), key=lambda n: bool(records[n].spread)):
        record, delta, layout = records[number], deltas[number], known[number]
        if record.spread and _is_replaced(
            watch, number, found, used_elsewhere=elsewhere, is_alone=count == 1
        ):
            found[number] = Attributed(None, None)
        elif number in probed:
            probe = probed.pop(number)
            if _is_lost(probe, layouts := probe.layouts(), loss_scale):
                return None
            layout = _chosen(watch, number, layouts, sites, probe)
            found[number] = Attributed(None if layout is None else delta, layout)
        else:
            if delta is None and layout is None:
                layout = _only_fitting(record, count)
            found[number] = Attributed(delta, layout)
    return [found[number] for number in range(len(records))]


def _refuse_what_is_not_spread(
    records: Sequence[Recorded], deltas: Sequence[Tensor | None]
) -> None:
    """Refuse whatever was computed from parameters alone and reaches the losses otherwise."""
    for record, delta in zip(records, deltas, strict=True):
        if isinstance(record.call.rule, Whole) and not record.spread:
            if delta is not None:
                raise Unsupported(record.call.options["reason"])
            record.void = True


def _is_replaced(
    watch: Recording,
    number: int,
    found: dict[int, Attributed],
    *,
    used_elsewhere: set[int],
    is_alone: bool,
) -> bool:
    """Tell whether the calls that spread a result take the place of the call that it is of.

    Args:
        watch: The forward pass.
        number: Of the call.
        found: What is known of the calls that spread its result.
        used_elsewhere: Calls whose results are used elsewhere too.
        is_alone: Whether there is one sentence, to which all rows belong.

    Returns:
        False if the rows of the result belong to sentences already; the calls that spread
        it are left out then.

    Raises:
        Unsupported: If sentences share the result, and use it elsewhere too.
    """
    record = watch.records[number]
    layouts = {n: found[n].layout for n in record.spread}
    where = {False} if is_alone and record.rows else _where_spread(watch.records, number, layouts)
    if False not in where:
        if number in used_elsewhere or number in watch.otherwise:
            place = watch.otherwise.get(number)
            raise Unsupported(
                f"{watch.describe(record)}'s output is shared by sentences and used outside sums"
                + (f" (in {place})" if place else "")
            )
        return True
    if not is_alone and isinstance(record.call.rule, Whole):
        raise Unsupported(record.call.options["reason"])
    if True in where:
        raise Unsupported(
            f"{watch.describe(record)}'s output is spread over sentences, and has rows of each"
        )
    for spread in record.spread:
        watch.records[spread].void = True
        found[spread] = Attributed(None, None)
    record.spread.clear()
    return False


def _where_spread(
    records: Sequence[Recorded],
    number: int,
    layouts: Sequence[OfSentences | None] | Mapping[int, OfSentences | None],
) -> set[bool | None]:
    """Say of each place where a result is spread whether that is over the sentences.

    Returns:
        Of a result that sentences share, True; of one that has rows of every sentence,
        False; None where nothing tells yet.
    """
    found: set[bool | None] = set()
    for spread in records[number].spread:
        record, layout = records[spread], layouts[spread]
        rule = record.call.rule
        if layout is None or not isinstance(rule, Spread):
            found.add(False if record.void else None)
        else:
            found.add(rule.is_over_sentences(record.call, layout))
    return found


def _gradients(
    loss: Tensor, records: Sequence[Recorded], *, keep: bool = False
) -> Sequence[Tensor | None]:
    if not records or not loss.requires_grad:
        return [None] * len(records)
    return torch.autograd.grad(
        loss, [record.edge for record in records], retain_graph=keep, allow_unused=True
    )


def _is_lost(probe: Probe, layouts: Sequence[OfSentences], loss_scale: float) -> bool:
    return loss_scale != 1 and len(layouts) != 1 and not probe.finite


def _chosen(
    watch: Recording, number: int, layouts: Sequence[OfSentences], sites: Sites, probe: Probe
) -> OfSentences | None:
    record = watch.records[number]
    where = f"rows of {watch.describe(record)}'s output, of shape {tuple(record.shape)}"
    if not layouts:
        product = watch.multiplied.get(number)
        why = f" (they are used in {product})" if product else ""
        raise Unsupported(f"{where}, have no single sentence whose loss depends on them{why}")
    layout = sites.choose(record, layouts, decisive=probe.decisive)
    if layout is None and not probe.empty:
        raise AmbiguousBatch(f"the batch does not tell which {where}, belong to which sentence")
    return layout


def _only_fitting(record: Recorded, count: int) -> OfSentences | None:
    """Find the sentences in an output that no loss depends on, as after LayerDrop."""
    dims = [dim for dim, size in enumerate(record.shape[: record.rows]) if size == count]
    return Strided(dims[0], count) if len(dims) == 1 else None


def _largest(gradients: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return the largest norm that is finite, a float64 scalar; 0 if there is none."""
    found = [torch.zeros(1, dtype=torch.float64, device=like.device)]
    for (group,) in grouped([g.detach() for g in gradients]):
        found.append(torch.stack(norms(group)).to(like.device))
    every = torch.cat(found)
    return torch.where(torch.isfinite(every), every, 0.0).max()


def _learn(
    watch: Recording, deltas: Sequence[Tensor | None], probes: Sequence[Probe], *, coarse: bool
) -> set[int]:
    """Let probes learn, and list the calls whose results are used elsewhere than spread out."""
    records = watch.records
    pulled: dict[int, tuple[Mapping[int, Tensor], Tensor]] = {}
    for number, record in enumerate(records):
        rule, part = record.call.rule, deltas[number]
        if isinstance(rule, Spread) and part is not None:
            part = wide(part)
            pulled[number] = rule.pulled_back(record.call, part), part.norm()
    spread = [number for number, record in enumerate(records) if record.spread]
    elsewhere = []
    for number in spread:
        parts = [
            (pulled[n][0][number], pulled[n][1]) for n in records[number].spread if n in pulled
        ]
        elsewhere.append(_used_elsewhere(deltas[number], parts, coarse=coarse))
    return {number for number, yes in zip(spread, answer(probes, elsewhere), strict=True) if yes}


def _used_elsewhere(
    whole: Tensor | None, parts: Sequence[tuple[Tensor, Tensor]], *, coarse: bool
) -> Tensor:
    """Tell whether the gradient of a result is more than comes from where it was spread.

    Args:
        whole: The gradient; ``None`` for zero.
        parts: What comes from each of these, and the norm of the gradient there.
        coarse: Whether something is computed in half precision.

    Returns:
        A boolean scalar.
    """
    if whole is None:
        return torch.zeros((), dtype=torch.bool)
    whole = wide(whole)
    tolerance, floor = COARSE if coarse else FINE
    rest, rounding = whole, whole.new_zeros(())
    for part, norm in parts:
        rest = rest - part
        # Sentences may cancel in the sum over them, and leave what rounding made.
        rounding = rounding + norm * floor
    found: Tensor = rest.norm() > tolerance * whole.norm() + rounding
    return found
