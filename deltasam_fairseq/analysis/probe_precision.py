"""What a precision leaves of Eq. 5: the three losses of each sentence, against float64's.

One random direction r serves every precision, and the differences are taken in
float64. So what differs between precisions is rounding: of the weights, of
their perturbation, of the forward pass.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from deltasam_fairseq.analysis.probe_precision_model import Batch, Classifier
from deltasam_fairseq.core.noise import seed_for
from deltasam_fairseq.core.perturb import Borrowed, Realised
from deltasam_fairseq.core.precision import full_precision
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.core.weights import instance_weights, slope


@dataclass(frozen=True)
class Precision:
    """One way to compute the three losses.

    Args:
        name: For the table.
        weights: What the model's weights are held in.
        autocast: What autocast rounds to, if it is on.
        masters: Whether float32 copies of half-precision weights are perturbed.
        tf32: Whether a GPU may take TF32 for products of float32.
        dropout: Whether dropout is on, the same masks in all three passes.
    """

    name: str
    weights: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    masters: bool = False
    tf32: bool = False
    dropout: bool = False

    @property
    def is_half(self) -> bool:
        """Whether weights are too coarse for r."""
        return self.weights in {torch.float16, torch.bfloat16}

    @property
    def reference(self) -> Precision:
        """The precision whose weights this one's are compared with."""
        return DROPOUT_REFERENCE if self.dropout else REFERENCE


REFERENCE = Precision("float64", torch.float64)
DROPOUT_REFERENCE = Precision("float64, dropout on", torch.float64, dropout=True)
PRECISIONS = (
    REFERENCE,
    Precision("fp32"),
    Precision("fp32 with TF32", tf32=True),
    Precision("fp32, bf16 autocast", autocast=torch.bfloat16),
    Precision("fp32, fp16 autocast", autocast=torch.float16),
    Precision("bf16, fp32 masters", torch.bfloat16, masters=True),
    Precision("fp16, fp32 masters", torch.float16, masters=True),
    Precision("bf16, no masters", torch.bfloat16),
    Precision("fp16, no masters", torch.float16),
    DROPOUT_REFERENCE,
    Precision("fp32, dropout on", dropout=True),
)


@dataclass
class Findings:
    """What one precision gave at one radius, batch by batch.

    Args:
        precision: Which.
        rho: Norm of r.
        bends: Numerators of Eq. 5, one tensor of shape ``(N,)`` per batch, nats.
        slopes: Denominators before their floor, likewise.
        weights: The weights, likewise.
        references: float64's weights, likewise.
        realised: What rounding to half precision left of r, in the first batch.
    """

    precision: Precision
    rho: float
    bends: list[Tensor] = field(default_factory=list)
    slopes: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    references: list[Tensor] = field(default_factory=list)
    realised: Realised | None = None


def runnable(device: torch.device, *, dropout: bool = True) -> tuple[list[Precision], list[str]]:
    """Tell what a device can run.

    Args:
        device: The device.
        dropout: Whether the rows with dropout are wanted.

    Returns:
        The precisions to run, and the names of the others.
    """
    can = [
        p
        for p in PRECISIONS
        if (dropout or not p.dropout) and (device.type == "cuda" or not p.tf32)
    ]
    return can, [p.name for p in PRECISIONS if p not in can]


def measure(
    model: Classifier,
    batches: Sequence[Batch],
    *,
    radii: Sequence[float],
    eta: float,
    seed: int,
    precisions: Sequence[Precision],
    seconds: float = float("inf"),
    say: Callable[[str], None] = lambda _: None,
) -> list[Findings]:
    """Probe batches in all precisions.

    Args:
        model: In float32.
        batches: The batches.
        radii: Values of ρ.
        eta: Floor under the slope, nats.
        seed: Of the directions and of dropout; each batch has its own direction,
            the same at all radii.
        precisions: Which; the reference of each must come before it.
        seconds: The first batch is always probed, others only if they are
            likely to end within this time.
        say: Called with progress.

    Returns:
        One record for each precision and radius.
    """
    prober = Prober(model, {p.weights for p in precisions})
    found = [Findings(p, rho) for p in precisions for rho in radii]
    started = time.monotonic()
    for number, batch in enumerate(batches):
        if number and (time.monotonic() - started) * (number + 1) / number > seconds:
            say(f"{seconds:.0f} s would not do for another batch")
            break
        torch.manual_seed(seed_for(seed, number))
        state = RandomState.capture(model.parameters())
        # At w itself masters make no difference.
        passes = {replace(p, masters=False) for p in precisions}
        at = {p: prober.losses(p, batch, state) for p in passes}
        for rho in radii:
            drawn = prober.draw(rho, seed_for(seed, number))
            weights: dict[Precision, Tensor] = {}
            for findings in (f for f in found if f.rho == rho):
                precision = findings.precision
                center = at[replace(precision, masters=False)]
                measured = number == 0 and precision.is_half
                with prober.moved(precision, drawn, measure=measured) as side:
                    plus = prober.losses(precision, batch, state)
                    side.mirror()
                    minus = prober.losses(precision, batch, state)
                    findings.realised = side.realised or findings.realised
                weights[precision] = instance_weights(center, plus, minus, eta=eta)
                findings.bends.append((plus + minus - 2 * center).abs())
                findings.slopes.append(slope(plus, minus))
                findings.weights.append(weights[precision])
                findings.references.append(weights[precision.reference])
        say(f"batch {number + 1} of {len(batches)}")
    return found


class Prober:
    """A model in several precisions at once.

    Args:
        model: In float32.
        dtypes: What else its weights are to be held in.
    """

    def __init__(self, model: Classifier, dtypes: Iterable[torch.dtype]) -> None:
        self._models = {torch.float32: model}
        for dtype in set(dtypes) - {torch.float32}:
            self._models[dtype] = copy.deepcopy(model).to(dtype)
        self._masters = list(model.parameters())

    def draw(self, rho: float, seed: int) -> list[Tensor | None]:
        """Draw r in float32, over all weights.

        Args:
            rho: Its norm.
            seed: Of the draw.

        Returns:
            One tensor per weight.
        """
        return WeightSpace(self._masters).gaussian(radius=rho, seed=seed)

    @contextmanager
    def moved(
        self, precision: Precision, direction: Sequence[Tensor | None], *, measure: bool
    ) -> Iterator[Borrowed]:
        """Run a block at w + r.

        Args:
            precision: Which model moves, and whether from its masters.
            direction: r, left as it is.
            measure: Whether to measure what rounding leaves of it.

        Yields:
            The record whose ``mirror`` goes to w - r.
        """
        params = list(self._models[precision.weights].parameters())
        space = WeightSpace(params, masters=self._masters if precision.masters else None)
        dtype = torch.promote_types(precision.weights, torch.float32)
        own = [None if r is None else r.to(dtype, copy=True) for r in direction]
        side = space.moved(own, measure=measure)
        try:
            yield side
        finally:
            side.give_back()

    @torch.no_grad()
    def losses(self, precision: Precision, batch: Batch, state: RandomState) -> Tensor:
        """Run one forward pass.

        Args:
            precision: How.
            batch: The sentences.
            state: Where dropout starts.

        Returns:
            The losses as computed, as float64, shape ``(N,)``.
        """
        model = self._models[precision.weights].train(precision.dropout)
        state.replay()
        with ExitStack() as stack:
            if not precision.tf32:
                stack.enter_context(full_precision(self._masters))
            if precision.autocast is not None:
                kind = batch.tokens.device.type
                stack.enter_context(torch.autocast(kind, dtype=precision.autocast))
            losses: Tensor = model.losses(batch).double()
        return losses
