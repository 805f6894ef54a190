"""One batch: its exact quantities, and what each weighting makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from deltasam_fairseq.analysis.estimator_quality_subject import Sentences, Subject
from deltasam_fairseq.analysis.estimator_quality_weights import (
    ALONG,
    AVERAGED,
    EXACT_ASCENT,
    IN_FLOAT64,
    INVERSE,
    PLAIN,
    WIDE,
    Probes,
    Weighting,
    averaged,
    both_sides,
    weighed,
)
from deltasam_fairseq.analysis.probe_precision_record import rank_correlation
from deltasam_fairseq.core.estimators import ESTIMATORS, probe
from deltasam_fairseq.core.graph import differentiate, gradients_aside, take_gradients
from deltasam_fairseq.core.noise import seed_for
from deltasam_fairseq.core.steps import per_instance_step
from deltasam_fairseq.core.vectors import global_norm
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.core.weights import usable
from deltasam_fairseq.per_instance import Engine, Unsupported, batched_per_instance_step

Vector = list[Tensor]


class Cell(NamedTuple):
    """One way to perturb one batch.

    Args:
        name: An estimator's, or one of the names above.
        rho: Radius.
        ascent: Cosine of v and D; none where there is no v.
        rank: Spearman's correlation of the weights with a_i |grad l_i|; none where
            they are all alike.
        change: Cosine of dR/dw = (1/N) sum_i [grad l_i(w + eps) - grad l_i(w)] and D.
        descent: Cosine of the gradient that updates the weights, (1/N) sum_i
            grad l_i(w + eps), and the exact one, (1/N) sum_i grad l_i(w + eps_i).
        floored: Share of the slopes below eta; none where nothing was probed.
    """

    name: str
    rho: float
    ascent: float | None
    rank: float | None
    change: float | None
    descent: float | None
    floored: float | None


class Bench:
    """One batch: its exact quantities, and what weights make of it.

    Args:
        subject: The model.
        sentences: The batch.
        engine: The model's batched engine.
        say: Told if a batch goes sentence by sentence.
    """

    def __init__(
        self, subject: Subject, sentences: Sentences, engine: Engine, say: Callable[[str], None]
    ) -> None:
        self.sentences = sentences
        self.params = list(engine.space)
        self.space = WeightSpace(self.params)
        self._doubled = subject.doubled
        self._engine = engine
        self._say = say
        with torch.no_grad():
            self.at = sentences.together()
        self.count = len(self.at)
        self.plain = self.weighted(torch.ones_like(self.at) / self.count)
        self.exact_weights, self.norms = self._exact_weights()
        self._wide: list[Weighting] = []

    def weighted(self, weights: Tensor) -> Vector:
        """Return ``sum_i g_i grad l_i(w)`` (Eq. 6)."""
        with torch.enable_grad():
            losses = self.sentences.together()
            return differentiate((weights.to(losses) * losses).sum(), self.params)

    def at_moved(self, direction: Vector, rho: float) -> Vector:
        """Return the batch's mean gradient at ``w + rho v / |v|`` (Eq. 7, Alg. 1)."""
        scale = (rho / global_norm(direction)).nan_to_num(0.0, 0.0)  # as the step does
        moved = [part * scale.to(part.dtype) for part in direction]
        with torch.enable_grad(), self.space.perturbed(moved):
            return differentiate(self.sentences.together().mean(), self.params)

    def per_instance(self, rho: float) -> Vector:
        """Return ``(1/N) sum_i grad l_i(w + eps_i)``, the exact gradient of Eq. 2."""
        with torch.enable_grad(), gradients_aside(self.params):
            try:
                batched_per_instance_step(self._engine, self.sentences.together, rho=rho)
            except Unsupported as refusal:
                self._say(f"sentence by sentence: {refusal}")
                for alone in self.sentences.alone:
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
        aim = difference(exact, self.plain)
        yield Cell(PLAIN, rho, None, None, None, cosine(self.plain, exact), None)
        for weighting in self._weightings(rho, eta=eta, seed=seed, probes=probes):
            values = weighting.values
            if not usable(values):
                values = torch.ones_like(values)  # as the step does
            direction = self.weighted(values)
            there = self.at_moved(direction, rho)
            yield Cell(
                weighting.name,
                rho,
                ascent=cosine(direction, aim),
                rank=rank_correlation(weighting.values, self.exact_weights),
                change=cosine(difference(there, self.plain), aim),
                descent=cosine(there, exact),
                floored=weighting.floored,
            )
        there = self.at_moved(aim, rho)
        yield Cell(
            EXACT_ASCENT,
            rho,
            ascent=1.0,
            rank=None,
            change=cosine(difference(there, self.plain), aim),
            descent=cosine(there, exact),
            floored=None,
        )

    def _weightings(
        self, rho: float, *, eta: float, seed: int, probes: Probes
    ) -> Iterator[Weighting]:
        for name in ESTIMATORS.names():
            if name == "exact":
                yield Weighting(name, self.exact_weights)
                continue
            weigh = ESTIMATORS.get(name)(
                self.sentences.together, self.space, rho=rho, eta=eta, seed=seed
            )
            found = weigh(self.at)
            probed = float(found.floored) / self.count if name == "finite_difference" else None
            yield Weighting(name, found.values.cpu(), probed)
        if self.at.dtype != torch.float64:
            yield self._in_float64(rho, eta=eta, seed=seed)
        yield self._along(rho, eta=eta)
        yield Weighting(INVERSE, self.norms.clamp_min(torch.finfo(torch.float32).tiny) ** -1)
        # These do not depend on rho.
        self._wide = self._wide or list(self._wide_probes(eta=eta, seed=seed, probes=probes))
        yield from self._wide

    def _exact_weights(self) -> tuple[Tensor, Tensor]:
        """Return ``a_i |grad l_i|`` by Hessian-vector products, and the norms, each alone."""
        exact = ESTIMATORS.get("exact")
        values, norms = [], []
        # Attention's fused kernel has no double backward.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            for alone in self.sentences.alone:
                weigh = exact(alone, self.params, rho=0.0, eta=1.0, seed=0)
                values.append(weigh(self.at[:1]).values)
                norms.append(global_norm(differentiate(alone().sum(), self.params)))
        return torch.cat(values).double().cpu(), torch.stack(norms).cpu()

    def _in_float64(self, rho: float, *, eta: float, seed: int) -> Weighting:
        model = self._doubled()
        together = self.sentences.of(model)
        with torch.no_grad():
            at = together()
            r = self.space.gaussian(radius=rho, seed=seed)  # the float32 one, to compare with
            space = WeightSpace([p for p in model.parameters() if p.requires_grad])
            noise = [None if part is None else part.double() for part in r]
            plus, minus = both_sides(together, space, noise)
        return weighed(IN_FLOAT64, at, plus, minus, eta=eta)

    def _along(self, rho: float, *, eta: float) -> Weighting:
        scale = rho / global_norm(self.plain)
        direction = [part * scale.to(part.dtype) for part in self.plain]
        plus, minus = both_sides(self.sentences.together, self.space, direction)
        return weighed(ALONG, self.at, plus, minus, eta=eta)

    def _wide_probes(self, *, eta: float, seed: int, probes: Probes) -> Iterator[Weighting]:
        sides = [
            probe(self.sentences.together, self.space, radius=probes.radius, seed=seed_for(seed, n))
            for n in range(max(1, probes.directions))
        ]
        plus, minus = sides[0]
        yield weighed(WIDE.format(radius=probes.radius), self.at, plus, minus, eta=eta)
        if probes.directions > 1:
            name = AVERAGED.format(count=probes.directions, radius=probes.radius)
            yield averaged(name, self.at, sides, eta=eta)


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
