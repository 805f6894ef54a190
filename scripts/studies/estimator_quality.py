"""Are the sentence weights of delta-SAM worth what they stand for?

What the weights stand in for is the gradient of the per-instance sharpness, Eq. 3, whose
first line needs no assumption about Hessians:

    D = dR_inst/dw = (1/N) sum_i [grad l_i(w + eps_i) - grad l_i(w)]

The batched engine gives it exactly, for the radius that is asked for. Weights g_i make the
ascent direction v = sum_i g_i grad l_i(w) of Eq. 6; it should be D's (Eq. 4). So every
registered estimator, and other probes of Eq. 5, are compared with the exact quantities, batch
by batch, without dropout. The columns and the answer are in docs/estimators.md.

    python -m scripts.studies.estimator_quality RUN --json > RECORD
    python -m scripts.studies.estimator_quality --show scripts/studies/records/estimator_*

RUN is a folder of ``deltasam train``, of any recipe.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from deltasam_fairseq.core import per_instance_step
from deltasam_fairseq.core.estimators import ESTIMATORS, probe
from deltasam_fairseq.core.graph import differentiate, gradients_aside, take_gradients
from deltasam_fairseq.core.noise import seed_for
from deltasam_fairseq.core.vectors import global_norm
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.core.weights import instance_weights, slope, usable
from deltasam_fairseq.markdown import markdown_lines
from deltasam_fairseq.per_instance import Engine, Unsupported, batched_per_instance_step
from scripts.studies.shared import Record, number, run, say, study_parser
from scripts.studies.subject import (
    Subject,
    add_arguments,
    batches_text,
    rank_correlation,
    spread,
    subject_of,
)

Vector = list[Tensor]
Losses = Callable[[], Tensor]

PLAIN = "no perturbation"
EXACT_ASCENT = "along D itself (Eq. 4)"
# Other probes for the formula of Eq. 5, compared with the registered estimators.
IN_FLOAT64 = "Eq. 5, probed in float64"
WIDE = "Eq. 5, probed at radius {radius:g}"
AVERAGED = "Eq. 5, {count} probes at radius {radius:g}"
ALONG = "Eq. 5, r along the batch's gradient"
#: Not an estimate of a_i |grad l_i|: it makes v the sum of the eps_i themselves.
INVERSE = "1 / ‖∇lᵢ‖"

COLUMNS = {
    "rank": "rank with aᵢ‖∇lᵢ‖",
    "ascent": "cos(v, D)",
    "change": "cos(∂R/∂w, D)",
    "descent": "cos(descent, exact)",
    "floored": "slopes < η",
}


class Cell(NamedTuple):
    """What one way to perturb gave on one batch.

    Args:
        name: An estimator's, or one of the names above.
        rho: Radius.
        descent: Cosine of the gradient that updates the weights, (1/N) sum_i
            grad l_i(w + eps), and the exact one, (1/N) sum_i grad l_i(w + eps_i).
        ascent: Cosine of v and D; none where there is no v.
        change: Cosine of dR/dw = (1/N) sum_i [grad l_i(w + eps) - grad l_i(w)] and D.
        rank: Spearman's correlation of the weights with a_i |grad l_i|; none where
            they are all alike.
        floored: Share of the slopes below eta; none where nothing was probed.
    """

    name: str
    rho: float
    descent: float | None
    ascent: float | None = None
    change: float | None = None
    rank: float | None = None
    floored: float | None = None


class Weighting(NamedTuple):
    """Weights of a batch, shape ``(N,)``, and the share of slopes below eta if any were probed."""

    name: str
    values: Tensor
    floored: float | None = None


class Probes(NamedTuple):
    """Norm of r in the rows that do not take rho, and how many directions one row averages."""

    radius: float = 0.5
    directions: int = 8


class Bench:
    """One batch: its exact quantities, and what weights make of it.

    Args:
        subject: The model.
        group: The sentences.
        engine: The model's batched engine.
        twin: A float64 copy of the model, for Eq. 5 probed in float64; none leaves this out.
    """

    def __init__(
        self,
        subject: Subject,
        group: Sequence[Any],
        engine: Engine,
        twin: nn.Module | None = None,
    ) -> None:
        self.together: Losses = partial(subject.losses, subject.model, group)
        self.alone: list[Losses] = [partial(subject.losses, subject.model, [o]) for o in group]
        self.params = list(engine.space)
        self.space = WeightSpace(self.params)
        self._subject, self._group, self._engine = subject, group, engine
        self._twin = twin
        with torch.no_grad():
            self.at = self.together()
        self.count = len(self.at)
        self.plain = self.weighted(torch.ones_like(self.at) / self.count)
        self.exact_weights, self.norms = self._exact_weights()
        self._wide: list[Weighting] = []

    def weighted(self, weights: Tensor) -> Vector:
        """Return ``sum_i g_i grad l_i(w)`` (Eq. 6)."""
        with torch.enable_grad():
            losses = self.together()
            return differentiate((weights.to(losses) * losses).sum(), self.params)

    def at_moved(self, direction: Vector, rho: float) -> Vector:
        """Return the batch's mean gradient at ``w + rho v / |v|`` (Eq. 7, Alg. 1)."""
        scale = (rho / global_norm(direction)).nan_to_num(0.0, 0.0)  # as the step does
        moved = [part * scale.to(part.dtype) for part in direction]
        with torch.enable_grad(), self.space.perturbed(moved):
            return differentiate(self.together().mean(), self.params)

    def per_instance(self, rho: float) -> Vector:
        """Return ``(1/N) sum_i grad l_i(w + eps_i)``, the exact gradient of Eq. 2."""
        with torch.enable_grad(), gradients_aside(self.params):
            try:
                batched_per_instance_step(self._engine, self.together, rho=rho)
            except Unsupported as refusal:
                say(f"sentence by sentence: {refusal}")
                for alone in self.alone:
                    per_instance_step(self.params, alone, rho=rho, reduction="sum")
                for param in self.params:
                    if param.grad is not None:
                        param.grad.div_(self.count)
            found = take_gradients(self.params)
        pairs = zip(self.params, found, strict=True)
        return [torch.zeros_like(param) if part is None else part for param, part in pairs]

    def cells(self, rho: float, *, eta: float, seed: int, probes: Probes) -> Iterator[Cell]:
        """Compare all ways to perturb with the exact quantities at one radius."""
        exact = self.per_instance(rho)
        aim = difference(exact, self.plain)  # D, Eq. 3

        def cell(name: str, direction: Vector, **more: float | None) -> Cell:
            there = self.at_moved(direction, rho)
            change = cosine(difference(there, self.plain), aim)
            return Cell(name, rho, cosine(there, exact), cosine(direction, aim), change, **more)

        yield Cell(PLAIN, rho, cosine(self.plain, exact))
        for name, values, floored in self._weightings(rho, eta=eta, seed=seed, probes=probes):
            usual = values if usable(values) else torch.ones_like(values)  # as the step does
            rank = rank_correlation(values, self.exact_weights)
            yield cell(name, self.weighted(usual), rank=rank, floored=floored)
        yield cell(EXACT_ASCENT, aim)._replace(ascent=1.0)  # by definition, not by rounding

    def _weightings(
        self, rho: float, *, eta: float, seed: int, probes: Probes
    ) -> Iterator[Weighting]:
        for name in ESTIMATORS.names():
            if name == "exact":
                yield Weighting(name, self.exact_weights)
                continue
            weigh = ESTIMATORS.get(name)(self.together, self.space, rho=rho, eta=eta, seed=seed)
            found = weigh(self.at)
            probed = float(found.floored) / self.count if name == "finite_difference" else None
            yield Weighting(name, found.values.cpu(), probed)
        if self._twin is not None:
            yield self._in_float64(self._twin, rho, eta=eta, seed=seed)
        scale = rho / global_norm(self.plain)
        along = [part * scale.to(part.dtype) for part in self.plain]
        yield weighed(ALONG, self.at, [both_sides(self.together, self.space, along)], eta=eta)
        yield Weighting(INVERSE, self.norms.clamp_min(torch.finfo(torch.float32).tiny) ** -1)
        # These do not depend on rho.
        self._wide = self._wide or list(self._wide_probes(eta=eta, seed=seed, probes=probes))
        yield from self._wide

    def _exact_weights(self) -> tuple[Tensor, Tensor]:
        """Return ``a_i |grad l_i|`` by Hessian-vector products, and the norms, each alone."""
        values, norms = [], []
        # Attention's fused kernel has no double backward.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            for alone in self.alone:
                weigh = ESTIMATORS.get("exact")(alone, self.params, rho=0.0, eta=1.0, seed=0)
                values.append(weigh(self.at[:1]).values)
                norms.append(global_norm(differentiate(alone().sum(), self.params)))
        return torch.cat(values).double().cpu(), torch.stack(norms).cpu()

    @torch.no_grad()
    def _in_float64(self, model: nn.Module, rho: float, *, eta: float, seed: int) -> Weighting:
        together = partial(self._subject.losses, model, self._group)
        r = self.space.gaussian(radius=rho, seed=seed)  # the float32 one, to compare with
        space = WeightSpace([p for p in model.parameters() if p.requires_grad])
        noise = [None if part is None else part.double() for part in r]
        return weighed(IN_FLOAT64, together(), [both_sides(together, space, noise)], eta=eta)

    def _wide_probes(self, *, eta: float, seed: int, probes: Probes) -> Iterator[Weighting]:
        sides = [
            probe(self.together, self.space, radius=probes.radius, seed=seed_for(seed, n))
            for n in range(probes.directions)
        ]
        yield weighed(WIDE.format(radius=probes.radius), self.at, sides[:1], eta=eta)
        if probes.directions > 1:
            name = AVERAGED.format(count=probes.directions, radius=probes.radius)
            yield weighed(name, self.at, sides, eta=eta)


def both_sides(
    together: Losses, space: WeightSpace, direction: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Score a batch at ``w + r`` and ``w - r`` for a given r, which is consumed."""
    with torch.no_grad(), space.perturbed(direction) as side:
        plus = together().detach()
        side.mirror()
        return plus, together().detach()


def weighed(
    name: str, at: Tensor, sides: Sequence[tuple[Tensor, Tensor]], *, eta: float
) -> Weighting:
    """Apply Eq. 5 to the losses along one direction or several.

    Several are averaged before the ratio, as the two expectations of section 4.2 are: the
    bend's mean over the root of the mean squared slope.

    Args:
        name: For the table.
        at: Losses at ``w``, shape ``(N,)``.
        sides: Losses at ``w + r`` and ``w - r`` for each direction.
        eta: Floor under the slope, nats.

    Returns:
        The weights.
    """
    slopes = torch.stack([slope(plus, minus) for plus, minus in sides]).square().mean(0).sqrt()
    if len(sides) == 1:
        values = instance_weights(at, *sides[0], eta=eta)
    else:
        bends = [plus.double() + minus.double() - 2 * at.double() for plus, minus in sides]
        values = torch.stack(bends).mean(0).abs() / slopes.clamp_min(eta)
    return Weighting(name, values.cpu(), (slopes < eta).double().mean().item())


def difference(left: Vector, right: Vector) -> Vector:
    """Subtract two vectors of weight space."""
    return [a - b for a, b in zip(left, right, strict=True)]


def cosine(left: Vector, right: Vector) -> float | None:
    """Return the cosine of the angle between two vectors of weight space.

    Args:
        left: One tensor per parameter.
        right: As many, of the same shapes.

    Returns:
        Between -1 and 1; none if one of them is zero or not finite.

    Example:
        >>> cosine([torch.tensor([3.0])], [torch.tensor([-1.0])])
        -1.0
    """
    norms = (global_norm(left) * global_norm(right)).item()
    if not 0 < norms < float("inf"):
        return None
    product = sum(float(a.flatten().dot(b.flatten())) for a, b in zip(left, right, strict=True))
    return product / norms


def compare(
    subject: Subject,
    dtype: torch.dtype,
    *,
    radii: Sequence[float],
    eta: float,
    seed: int,
    probes: Probes,
    minutes: float = 0.0,
) -> list[list[Cell]]:
    """Measure all batches of a subject, without dropout.

    Args:
        subject: Model and batches; the model takes the precision.
        dtype: Of model and gradients.
        radii: Values of rho.
        eta: Floor under the slope of Eq. 5, nats.
        seed: Of the directions; each batch has its own.
        probes: The rows that do not take rho.
        minutes: After which no further batch is begun; 0: no limit.

    Returns:
        The cells of each batch.
    """
    is_double = dtype == torch.float64
    twin = None if is_double else copy.deepcopy(subject.model).double().eval()
    engine = Engine(subject.model.to(dtype).eval())
    found = []
    for batch, group in subject.in_time(minutes):
        bench = Bench(subject, group, engine, twin)
        own = seed_for(seed, batch)
        cells = [bench.cells(rho, eta=eta, seed=own, probes=probes) for rho in radii]
        found.append([cell for row in cells for cell in row])
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Compare the estimators on what the arguments name."""
    subject = subject_of(args)
    found = compare(
        subject,
        getattr(torch, args.precision),
        radii=args.rho,
        eta=args.eta,
        seed=args.seed,
        probes=Probes(args.probe_radius, args.probe_count),
        minutes=args.minutes,
    )
    return {"model": dict(subject.about), "batches": len(found), "cells": summed_up(found)}


def summed_up(found: Sequence[Sequence[Cell]]) -> list[dict[str, Any]]:
    """Sum the batches up, in JSON's types: one entry for each radius and way to perturb."""
    rows = zip(*found, strict=True)  # every batch has the same cells, in the same order
    return [
        {
            "name": cells[0].name,
            "rho": cells[0].rho,
            **{column: spread([getattr(cell, column) for cell in cells]) for column in COLUMNS},
        }
        for cells in rows
    ]


def tables(records: Sequence[Record]) -> str:
    """Lay records out, one table each."""
    return "\n\n".join(_table(record) for record in records)


def _table(record: Record) -> str:
    head = ("ρ", "perturbed by", *COLUMNS.values(), "cos(∂R/∂w, D) − uniform's")
    base = {cell["rho"]: cell["change"] for cell in record["cells"] if cell["name"] == "uniform"}
    rows = [
        (
            f"{cell['rho']:g}",
            cell["name"],
            *(_text(cell[column], record["batches"]) for column in COLUMNS),
            _paired(cell["change"], base[cell["rho"]]),
        )
        for cell in record["cells"]
    ]
    rule = ("--:", "---", *("--:" for _ in head[2:]))
    model, settings = record["model"], record["settings"]
    caption = (
        f"**{model['name']}** ({model['parameters']:,} weights, {model['weights']}; text: "
        f"{model['text']}): {batches_text(record['batches'])} of {settings['batch_size']}, "
        f"{settings['precision']}, η = {settings['eta']:g}. {record['hardware']['processor']}, "
        f"torch {record['versions']['torch']}, seed {settings['seed']}."
    )
    return "\n".join([caption, "", *markdown_lines(head, rule, rows)])


def _paired(found: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Write the differences to SAM on the same batches, and how many are above zero."""
    if not found["n"] or found["n"] != base["n"] or found is base:
        return "–"
    pairs = zip(found["values"], base["values"], strict=True)
    differences = [mine - theirs for mine, theirs in pairs]
    above = sum(value > 0 for value in differences)
    mean = spread(differences)
    sd = "" if mean["sd"] is None else f" ± {mean['sd']:.2f}"
    return f"{mean['mean']:+.2f}{sd}, {above} of {len(differences)} > 0"


def _text(found: Mapping[str, Any], batches: int) -> str:
    if found["mean"] is None:
        return "–"
    # Cosines of almost 1 differ in what is missing.
    digits = 4 if found["mean"] > 0.99 and found["mean"] != 1 else 2
    text = f"{found['mean']:.{digits}f}"
    if found["sd"] is not None:
        text += f" ± {found['sd']:.{digits}f}"
    return text if found["n"] == batches else f"{text} (n {found['n']})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study."""
    parser = study_parser("estimator_quality", __doc__)
    add_arguments(parser, batches=8)
    parser.add_argument(
        "--precision",
        choices=("float32", "float64"),
        default="float32",
        help="of model and gradients (%(default)s)",
    )
    parser.add_argument(
        "--probe-radius",
        type=number(float, 0, above=True),
        default=0.5,
        metavar="R",
        help="length of r in the rows that do not take rho (%(default)s)",
    )
    parser.add_argument(
        "--probe-count",
        type=number(int, 1),
        default=8,
        metavar="N",
        help="directions that one of these rows averages (%(default)s)",
    )
    run("estimator_quality", parser, measure, tables, arguments)


if __name__ == "__main__":
    main()
