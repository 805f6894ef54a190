"""How close does each point between SAM and Eq. 2 come to the latter, and what does it cost?

What a method adds to the plain gradient is (1/N) sum_i [grad l_i(w + eps) - grad l_i(w)] with an
eps of its own for all sentences, for a group of them, or for each. The last is the gradient of
the per-instance sharpness (Eq. 3, first line):

    D = (1/N) sum_i [grad l_i(w + eps_i) - grad l_i(w)]

Every point is compared with D, which is found sentence by sentence, batch by batch, without
dropout. Beside each stands its cost, from a record of ``deltasam bench step``. The answer is in
docs/axis.md.

    python -m scripts.studies.perturbation_quality RUN --title TEXT --json > RECORD
    python -m scripts.studies.perturbation_quality --show RECORD … --plot docs/axis.svg

RUN is a folder of ``deltasam train``, of any recipe whose model the batched engine takes.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.core.estimators import ESTIMATORS, OF_NORMS, from_norms
from deltasam_fairseq.core.graph import differentiate
from deltasam_fairseq.core.noise import seed_for
from deltasam_fairseq.core.vectors import global_norm
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.core.weights import usable
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.fairseq_plugin.sharpness.radius_rules import factors_of
from deltasam_fairseq.figures import check_figure, new_figure
from deltasam_fairseq.markdown import markdown_lines
from deltasam_fairseq.per_instance import Engine, Unsupported
from scripts.studies.estimator_quality import Vector, cosine, difference
from scripts.studies.shared import Record, run, study_parser
from scripts.studies.subject import (
    Subject,
    add_arguments,
    batches_text,
    spread,
    subject_of,
)

#: Of MiniLM on 16 sentences of 64 tokens; its variants have the names of the points.
COSTS = Path(__file__).parents[1] / "results" / "step_axis-minilm_epyc-2core_202611.json"

GROUPS = {"groups2": 2, "groups4": 4, "groups8": 8, "groups16": 16}
FRACTIONS = {"fraction": 0.25, "half": 0.5}
ESTIMATED = {"delta_sam": "finite_difference", "random": "random"}

LABELS = {
    "sam": "`sam` (K = 1)",
    **{name: f"`sam`, {count} groups" for name, count in GROUPS.items()},
    "per_instance": "`per_instance`",
    "fraction": "`sam`, ascent on 0.25",
    "half": "`sam`, ascent on 0.5",
    "norm_only": "`sam`, norm layers alone",
    "gibbs": "`delta_sam`, `gibbs`",
    "inverse_norm": "`delta_sam`, `inverse_norm`",
    "delta_sam": "`delta_sam`, Eq. 5",
    "random": "`delta_sam`, random weights",
}
#: Marker and colour of each point that is no number of groups.
MARKERS = {
    "per_instance": ("*", "#117a65"),
    "fraction": ("v", "#1b4f72"),
    "half": ("^", "#1b4f72"),
    "norm_only": ("P", "#7d3c98"),
    "gibbs": ("D", "#d95f02"),
    "inverse_norm": ("d", "#d95f02"),
    "delta_sam": ("s", "#a93226"),
    "random": ("x", "#777777"),
}


class Batch:
    """One batch, and the gradient that each point descends along.

    Args:
        subject: The model.
        sentences: The batch.
        engine: The model's batched engine.
        rho: Radius of every perturbation.
    """

    def __init__(
        self, subject: Subject, sentences: Sequence[Any], engine: Engine, *, rho: float
    ) -> None:
        self._subject, self._sentences, self._rho = subject, sentences, rho
        self.count = len(sentences)
        self.params = list(engine.space)
        self.ball = WeightSpace(self.params)
        self.ascent = engine.ascend(partial(self.losses, range(self.count)), rho=rho)
        self.plain = self.weighted(torch.ones(self.count) / self.count)

    def losses(self, rows: Sequence[int]) -> Tensor:
        """Score some of the sentences, shape ``(len(rows),)``."""
        return self._subject.losses(self._subject.model, [self._sentences[row] for row in rows])

    def weighted(self, weights: Tensor) -> Vector:
        """Return ``sum_i g_i grad l_i(w)`` (Eq. 6)."""
        found = self.ascent.weighted_gradient(weights.to(self.ascent.losses.device))
        pairs = zip(self.params, found, strict=True)
        return [torch.zeros_like(param) if part is None else part for param, part in pairs]

    def descent(self, rows: Sequence[int], gradient: Vector, space: WeightSpace) -> Vector:
        """Return ``(1/N) sum_i grad l_i(w + eps)`` over the rows, with eps along a gradient.

        Args:
            rows: The sentences that share the perturbation.
            gradient: Consumed.
            space: The neighbourhood, of all parameters.
        """
        direction, norm = space.steepest(gradient)
        scale = self._rho / norm if norm > 0 and math.isfinite(norm) else 0.0
        with torch.enable_grad(), space.perturbed(direction, scale):
            return differentiate(self.losses(rows).sum() / self.count, self.params)

    def grouped(self, groups: int, seed: int) -> Vector:
        """Deal the sentences out as the core's step does; as many groups as sentences is Eq. 2."""
        draw = torch.Generator().manual_seed(seed)
        dealt = torch.randperm(self.count, generator=draw).tensor_split(min(groups, self.count))
        total = [torch.zeros_like(param) for param in self.params]
        for rows in dealt:
            with torch.enable_grad():
                gradient = differentiate(self.losses(rows.tolist()).mean(), self.params)
            for whole, part in zip(
                total, self.descent(rows.tolist(), gradient, self.ball), strict=True
            ):
                whole.add_(part)
        return total

    def batched(self) -> Vector:
        """Return the engine's gradient of Eq. 2."""
        with torch.enable_grad():
            with self.ascent.perturbed():
                losses = self.losses(range(self.count))
            return differentiate(losses.mean(), self.params)

    def weights(self, name: str, *, eta: float, seed: int) -> Tensor:
        """Return what a point weighs the sentences of its ascent with, shape ``(N,)``."""
        if name in FRACTIONS:
            draw = torch.Generator().manual_seed(seed)
            chosen = torch.randperm(self.count, generator=draw)
            chosen = chosen[: math.ceil(FRACTIONS[name] * self.count)]
            return torch.zeros(self.count).index_fill_(0, chosen, 1.0)
        if name in OF_NORMS:
            return from_norms(name, self.ascent.norms)
        if name in ESTIMATED:
            estimator = ESTIMATORS.get(ESTIMATED[name])
            together = partial(self.losses, range(self.count))
            weigh = estimator(together, self.ball, rho=self._rho, eta=eta, seed=seed)
            values = weigh(self.ascent.losses).values
            return values if usable(values) else torch.ones(self.count)  # as the step does
        return torch.ones(self.count)

    def gradients(self, *, eta: float, seed: int) -> Iterator[tuple[str, Vector]]:
        """Find what each point descends along; the first is the exact one, of ``groups16``.

        Args:
            eta: Floor under the slope of Eq. 5, nats.
            seed: Of groups, choices and directions.

        Yields:
            A point's name and its gradient.
        """
        shaped = WeightSpace(self.params, factors=factors_of("norm_only", self._subject.model))
        yield "exact", self.grouped(self.count, seed)
        yield "per_instance", self.batched()
        for name in LABELS:
            if name in GROUPS:
                if GROUPS[name] < self.count:
                    yield name, self.grouped(GROUPS[name], seed)
            elif name != "per_instance":
                weights = self.weights(name, eta=eta, seed=seed)
                space = shaped if name == "norm_only" else self.ball
                yield name, self.descent(range(self.count), self.weighted(weights), space)

    def cells(self, *, eta: float, seed: int) -> dict[str, dict[str, float | None]]:
        """Compare what each point adds to the plain gradient with D.

        Returns:
            By point, ``closeness``, the cosine, and ``length``, the ratio of the norms.
        """
        gradients = self.gradients(eta=eta, seed=seed)
        aim = difference(next(gradients)[1], self.plain)  # D, Eq. 3
        parts = ((name, difference(gradient, self.plain)) for name, gradient in gradients)
        length = global_norm(aim).item()
        return {
            name: {
                "closeness": cosine(part, aim),
                "length": global_norm(part).item() / length if length else None,
            }
            for name, part in parts
        }


class Kept:
    """Cells of the batches that were measured before, in a file with a line for each.

    Args:
        path: The file; none keeps nothing.
        settings: What the cells depend on, the file's first line.

    Raises:
        UserError: If the file is of other settings.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self._path = path
        self.cells: list[dict[str, Any]] = []
        if path is None:
            return
        head = json.dumps(settings, sort_keys=True)
        if not path.exists():
            path.write_text(head + "\n", encoding="utf-8")
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        if first != head:
            raise UserError(f"--keep {path} was measured with other settings: {first}")
        self.cells = [json.loads(line) for line in lines]

    def add(self, cells: dict[str, Any]) -> None:
        """Keep one more batch."""
        self.cells.append(cells)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(cells) + "\n")


def compare(subject: Subject, kept: Kept, args: argparse.Namespace) -> None:
    """Measure the batches of a subject that are not kept yet, without dropout.

    Raises:
        UserError: If the batched engine refuses the model.
    """
    engine = Engine(subject.model.eval())
    rest = Subject(subject.model, subject.groups[len(kept.cells) :], subject.score, subject.about)
    for _, sentences in rest.in_time(args.minutes):
        try:
            batch = Batch(subject, sentences, engine, rho=args.rho[0])
        except Unsupported as reason:
            raise UserError(f"the batched engine refuses this model: {reason}") from None
        kept.add(batch.cells(eta=args.eta, seed=seed_for(args.seed, len(kept.cells))))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Compare the points on what the arguments name."""
    if len(args.rho) != 1:
        raise UserError("--rho takes one radius here")
    subject = subject_of(args)
    names = ("split", "rho", "eta", "batch_size", "seed")
    kept = Kept(
        args.keep, {**{name: getattr(args, name) for name in names}, "model": subject.about["name"]}
    )
    compare(subject, kept, args)
    cells = kept.cells[: args.batches]
    return {"model": dict(subject.about), "batches": len(cells), "points": summed_up(cells)}


def summed_up(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum the batches up, in JSON's types: one entry for each point."""
    return {
        name: {what: spread([batch[name][what] for batch in cells]) for what in cells[0][name]}
        for name in LABELS
        if name in cells[0]
    }


def costs() -> Mapping[str, Mapping[str, float]]:
    """Read each point's cost from the benchmark's record.

    Returns:
        By point, ``time`` and ``memory`` over those of ``none`` and of ``sam``: the median over
        rounds of the times' ratio, and the ratio of the peaks of an update.
    """
    record = json.loads(COSTS.read_text(encoding="utf-8"))
    (model,) = record["models"]
    ratios = model["clocks"][record["settings"]["clock"]]["ratios"]
    peak = model["memory"]["peak_bytes"]
    return {
        name: {
            **{f"time × {base}": ratios[base][name]["median"] for base in ("none", "sam")},
            **{f"memory × {base}": peak[name] / peak[base] for base in ("none", "sam")},
        }
        for name in LABELS
    }


def tables(records: Sequence[Record]) -> str:
    """Lay the records out: a caption for each, the points' costs and cosines, and the lengths."""
    cost = costs()
    titles = [record["settings"]["title"] for record in records]
    columns = tuple(cost["sam"])
    lines = [*(f"- {_caption(record)}" for record in records), ""]
    lines += markdown_lines(
        ("cosine with D", *columns, *titles),
        ("---", *("--:" for _ in (*columns, *titles))),
        [
            (
                label,
                *(f"{cost[name][column]:.2f}" for column in columns),
                *(_text(record["points"].get(name, {}).get("closeness")) for record in records),
            )
            for name, label in LABELS.items()
        ],
    )
    lines += [""]
    lines += markdown_lines(
        ("length, × D's", *titles),
        ("---", *("--:" for _ in titles)),
        [
            (label, *(_text(record["points"].get(name, {}).get("length")) for record in records))
            for name, label in LABELS.items()
        ],
    )
    return "\n".join(lines)


def _caption(record: Record) -> str:
    model, settings = record["model"], record["settings"]
    (rho,) = settings["rho"]
    return (
        f"**{settings['title']}**: {model['parameters']:,} weights, "
        f"{batches_text(record['batches'])} of {settings['batch_size']} of its training "
        f"sentences, ρ = {rho:g}. {record['hardware']['processor']}, torch "
        f"{record['versions']['torch']}, seed {settings['seed']}."
    )


def _text(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "D"
    if found["mean"] is None:
        return "–"
    sd = "" if found["sd"] is None else f" ± {found['sd']:.2f}"
    return f"{found['mean']:.2f}{sd}"


def draw(records: Sequence[Record], out: Path) -> None:
    """Draw closeness against cost, a panel for each record."""
    check_figure(out)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq lets all messages through
    cost = costs()
    figure = new_figure(4 * len(records) + 2, 4)
    panels = figure.subplots(1, len(records), sharey=True, squeeze=False)[0]
    for panel, record in zip(panels, records, strict=True):
        means = {name: found["closeness"] for name, found in record["points"].items()}
        on_axis = [name for name in ("sam", *GROUPS) if name in means]
        for names, style, colour, label in (
            (on_axis, "-o", "#222222", "K = 1, 2, 4, 8 groups"),
            *(
                ([name], mark, colour, LABELS[name].replace("`", ""))
                for name, (mark, colour) in MARKERS.items()
            ),
        ):
            panel.errorbar(
                [cost[name]["time × none"] for name in names],
                [means[name]["mean"] for name in names],
                [means[name]["sd"] or 0 for name in names],
                fmt=style,
                color=colour,
                label=label,
                markersize=12 if style == "*" else 6,
                elinewidth=0.7,
            )
        panel.set_title(record["settings"]["title"], loc="left", fontsize=10)
        panel.set_xlabel("time of an update, × none")
        panel.grid(color="#e5e5e5", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("cosine with D (Eq. 3)")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(out, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study."""
    parser = study_parser("perturbation_quality", __doc__)
    add_arguments(parser, batches=16)
    parser.set_defaults(rho="0.05", threads=1)
    parser.add_argument("--title", default="", help="what the table's columns are called")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="keep each batch there, and go on with those that a killed run has kept",
    )
    run("perturbation_quality", parser, measure, tables, arguments, draw=draw)


if __name__ == "__main__":
    main()
