"""What does each precision leave of the sentence weights of Eq. 5?

For a batch and a radius, one random direction r is drawn in float32, and l(w), l(w + r) and
l(w - r) are computed in every precision along this same r. The differences are taken in
float64. So what differs between precisions is rounding: of the weights, of their perturbation,
of the forward pass. The answer is in docs/precision.md.

    python -m scripts.studies.probe_precision RUN --split valid --json > RECORD
    python -m scripts.studies.probe_precision --random tiny
    python -m scripts.studies.probe_precision --show scripts/studies/records/probe_precision_*

RUN is a folder of ``deltasam train``. Roberta-large's size needs 14 GB of memory.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from deltasam_fairseq.core.noise import seed_for
from deltasam_fairseq.core.perturb import Borrowed, Realised
from deltasam_fairseq.core.precision import full_precision
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.core.weights import instance_weights, slope, usable
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.markdown import markdown_lines
from scripts.studies.shared import Record, run, study_parser
from scripts.studies.subject import (
    Subject,
    add_arguments,
    batches_text,
    rank_correlation,
    rounded,
    spread,
    subject_of,
)


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
    def reference(self) -> Precision:
        """The precision whose weights this one's are compared with."""
        return DROPOUT_REFERENCE if self.dropout else REFERENCE


REFERENCE = Precision("float64", torch.float64)
DROPOUT_REFERENCE = Precision("float64, dropout on", torch.float64, dropout=True)
#: Each behind its reference.
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


class HalfProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Products of float16 on a CPU as a GPU takes them: float16 factors, sums in float32.

    A CPU's own float16 product is two hundred times slower than float32's.
    """

    PRODUCTS = {getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm")}

    def __torch_dispatch__(  # noqa: D105
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if func in self.PRODUCTS and (args[0].dtype, args[0].device.type) == (torch.half, "cpu"):
            found: Tensor = func(*(one.float() for one in args), **given)
            return found.half()
        return func(*args, **given)


class Prober:
    """A subject's model in several precisions at once.

    Args:
        subject: Model and sentences.
        device: Where to run.
        dtypes: What its weights are to be held in.
    """

    def __init__(
        self, subject: Subject, device: torch.device, dtypes: Iterable[torch.dtype]
    ) -> None:
        self._losses = subject.losses
        self._models = {torch.float32: subject.model.to(device)}
        for dtype in set(dtypes) - {torch.float32}:
            self._models[dtype] = copy.deepcopy(self._models[torch.float32]).to(dtype)
        self.masters = self._params(torch.float32)

    def _params(self, dtype: torch.dtype) -> list[Tensor]:
        return [param for param in self._models[dtype].parameters() if param.requires_grad]

    @contextmanager
    def moved(
        self, precision: Precision, direction: Sequence[Tensor | None], *, measure: bool
    ) -> Iterator[Borrowed]:
        """Run a block at w + r.

        Args:
            precision: Which model moves, and whether from its masters.
            direction: r in float32, left as it is.
            measure: Whether to measure what rounding leaves of it.

        Yields:
            The record whose ``mirror`` goes to w - r.
        """
        masters = self.masters if precision.masters else None
        space = WeightSpace(self._params(precision.weights), masters=masters)
        dtype = torch.promote_types(precision.weights, torch.float32)
        own = [None if r is None else r.to(dtype, copy=True) for r in direction]
        side = space.moved(own, measure=measure)
        try:
            yield side
        finally:
            side.restore()

    @torch.no_grad()
    def losses(self, precision: Precision, group: Sequence[Any], state: RandomState) -> Tensor:
        """Run one forward pass; the losses as computed, as float64, shape ``(N,)``."""
        model = self._models[precision.weights].train(precision.dropout)
        state.replay()
        with ExitStack() as stack:
            if not precision.tf32:
                stack.enter_context(full_precision(self.masters))
            if precision.autocast is not None:
                kind = self.masters[0].device.type
                stack.enter_context(torch.autocast(kind, dtype=precision.autocast))
            stack.enter_context(HalfProducts())  # type: ignore[no-untyped-call]
            return self._losses(model, group).double()


@dataclass
class Findings:
    """What one precision gave at one radius, batch by batch.

    Args:
        precision: Which.
        rho: Norm of r.
        bends: Numerators of Eq. 5, one tensor of shape ``(N,)`` per batch, nats.
        slopes: Denominators before their floor, likewise.
        weights: The weights, likewise.
        references: The reference's weights, likewise.
        realised: What rounding to half precision left of r, in the first batch.
    """

    precision: Precision
    rho: float
    bends: list[Tensor] = field(default_factory=list)
    slopes: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    references: list[Tensor] = field(default_factory=list)
    realised: Realised | None = None

    def cell(self, eta: float) -> dict[str, Any]:
        """Sum up, in JSON's types."""
        bends, slopes = torch.cat(self.bends), torch.cat(self.slopes)
        pairs = zip(self.weights, self.references, strict=True)
        return {
            "precision": self.precision.name,
            "rho": self.rho,
            "sentences": bends.numel(),
            "zero_numerators": rounded((bends == 0).double().mean().item()),
            "median_numerator": rounded(bends.nanmedian().item()),
            "median_denominator": rounded(slopes.nanmedian().item()),
            "floored": rounded((slopes < eta).double().mean().item()),
            "rank": spread([rank_correlation(mine, theirs) for mine, theirs in pairs]),
            "batches": len(self.weights),
            "all_zero_batches": sum(not bool(mine.any()) for mine in self.weights),
            "unusable_batches": sum(not usable(mine) for mine in self.weights),
            "realised": self.realised and self.realised._asdict(),
        }


def probe(
    subject: Subject,
    precisions: Sequence[Precision],
    *,
    radii: Sequence[float],
    eta: float,
    seed: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    minutes: float = 0.0,
) -> list[Findings]:
    """Probe batches in all precisions.

    Args:
        subject: Model and batches; the model goes to the device.
        precisions: Which; the reference of each must come before it.
        radii: Values of rho.
        eta: Floor under the slope, nats.
        seed: Of the directions and of dropout; each batch has its own direction, the same
            at all radii.
        device: Where to run.
        minutes: After which no further batch is begun; 0: no limit.

    Returns:
        One for each precision and radius.
    """
    prober = Prober(subject, device, {p.weights for p in precisions})
    found = [Findings(p, rho) for p in precisions for rho in radii]
    for number, group in subject.in_time(minutes):
        torch.manual_seed(seed_for(seed, number))
        state = RandomState.capture(prober.masters)
        # At w itself masters make no difference.
        passes = {replace(p, masters=False) for p in precisions}
        at = {p: prober.losses(p, group, state) for p in passes}
        for rho in radii:
            drawn = WeightSpace(prober.masters).gaussian(radius=rho, seed=seed_for(seed, number))
            weights: dict[Precision, Tensor] = {}
            for findings in (f for f in found if f.rho == rho):
                precision = findings.precision
                center = at[replace(precision, masters=False)]
                half = precision.weights in {torch.float16, torch.bfloat16}
                with prober.moved(precision, drawn, measure=half and not number) as side:
                    plus = prober.losses(precision, group, state)
                    side.mirror()
                    minus = prober.losses(precision, group, state)
                    findings.realised = side.realised or findings.realised
                weights[precision] = instance_weights(center, plus, minus, eta=eta)
                findings.bends.append((plus + minus - 2 * center).abs())
                findings.slopes.append(slope(plus, minus))
                findings.weights.append(weights[precision])
                findings.references.append(weights[precision.reference])
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Probe what the arguments name."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU that it can use")
    subject = subject_of(args)
    left_out = {
        p.name
        for p in PRECISIONS
        if (p.dropout and args.no_dropout) or (p.tf32 and args.device == "cpu")
    }
    found = probe(
        subject,
        [p for p in PRECISIONS if p.name not in left_out],
        radii=args.rho,
        eta=args.eta,
        seed=args.seed,
        device=torch.device(args.device),
        minutes=args.minutes,
    )
    return {
        "model": dict(subject.about),
        "not_run": [p.name for p in PRECISIONS if p.name in left_out],
        "cells": [one.cell(args.eta) for one in found],
    }


def tables(records: Sequence[Record]) -> str:
    """Lay records out, one table each."""
    return "\n\n".join(_table(record) for record in records)


def _table(record: Record) -> str:
    settings, not_run = record["settings"], "not run"
    head = (
        "precision",
        "numerators that are 0",
        "median numerator",
        f"denominators < {settings['eta']:g}",
        *(f"rank, ρ = {rho:g}" for rho in settings["rho"]),
        "batches all 0",
        "cosine of the move with r",
    )
    rows = [_row(record, name) for name in dict.fromkeys(c["precision"] for c in record["cells"])]
    rows += [(name, *(not_run,) * (len(head) - 1)) for name in record["not_run"]]
    rule = ("---", *("--:" for _ in head[1:]))
    return "\n".join([_caption(record), "", *markdown_lines(head, rule, rows)])


def _caption(record: Record) -> str:
    model, settings, machine = record["model"], record["settings"], record["hardware"]
    where = ", ".join(machine["gpus"]) if settings["device"] == "cuda" else machine["processor"]
    cell = record["cells"][0]
    return (
        f"**{model['name']}** ({model['parameters']:,} weights, {model['weights']}; text: "
        f"{model['text']}): {batches_text(cell['batches'])} of "
        f"{cell['sentences'] // cell['batches']} sentences with {model['mean_tokens']:.0f} tokens "
        f"on average. {where}, torch {record['versions']['torch']}, seed {settings['seed']}."
    )


def _row(record: Record, name: str) -> tuple[str, ...]:
    cells = [cell for cell in record["cells"] if cell["precision"] == name]

    def each(text: Callable[[Mapping[str, Any]], str]) -> str:
        return " / ".join(text(cell) for cell in cells)

    cosines = [f"{cell['realised']['cosine']:.2f}" for cell in cells if cell["realised"]]
    return (
        name,
        each(lambda cell: f"{100 * cell['zero_numerators']:.0f}") + " %",
        each(lambda cell: f"{cell['median_numerator']:.1e}"),
        each(lambda cell: f"{100 * cell['floored']:.0f}") + " %",
        *(_rank(cell) for cell in cells),
        each(lambda cell: str(cell["all_zero_batches"])),
        " / ".join(cosines) or "–",
    )


def _rank(cell: Mapping[str, Any]) -> str:
    rank = cell["rank"]
    if rank["mean"] is None:
        return "–"
    sd = "" if rank["sd"] is None else f" ± {rank['sd']:.2f}"
    count = "" if rank["n"] == cell["batches"] else f" (n {rank['n']})"
    return f"{rank['mean']:.2f}{sd}{count}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study."""
    parser = study_parser("probe_precision", __doc__)
    add_arguments(parser, batches=20)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    parser.add_argument("--no-dropout", action="store_true", help="no rows with dropout on")
    run("probe_precision", parser, measure, tables, arguments)


if __name__ == "__main__":
    main()
