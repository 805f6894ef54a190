"""What one update asks of a GPU beyond its passes, counted without one.

Every method runs an update of fairseq's own trainer; the passes are counted apart, on
``none``'s trainer. What is left, an update's counts less those of ``none``'s and of the
passes that it runs more, is what the method adds around them.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairseq.trainer import Trainer

from deltasam_fairseq.benchmarks.cost_model import PASSES, PassSeconds
from deltasam_fairseq.benchmarks.counting import Counts, counted
from deltasam_fairseq.benchmarks.launches_plan import LaunchesPlan
from deltasam_fairseq.benchmarks.methods import METHOD_FLAGS
from deltasam_fairseq.benchmarks.plan import Plan
from deltasam_fairseq.benchmarks.step import embedded, quiet, size_of, update
from deltasam_fairseq.benchmarks.synthetic import write
from deltasam_fairseq.benchmarks.timing import no_collection, timed
from deltasam_fairseq.benchmarks.trainers import batch_of, build_trainer, flags_of
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.core.vectors import unique
from deltasam_fairseq.fairseq_plugin.sharpness.engine_passes import own_projections
from deltasam_fairseq.per_instance import Engine
from deltasam_fairseq.per_instance.first_pass import Recording
from deltasam_fairseq.per_instance.perturbed_pass import Perturbing
from deltasam_fairseq.per_instance.row_selection import Tables

_CPU = torch.device("cpu")


@dataclass
class LaunchMeasurement:
    """What was counted on one model.

    Args:
        model: Its name.
        flags: fairseq's flags, with ``METHOD`` in the place of the method's own.
        tensors: Trainable parameters, tied ones once.
        batch: Sentences, source tokens and target tokens.
        passes: By the name of :class:`~.cost_model.PassSeconds`, the counts of a pass.
        updates: By method, the counts of an update.
        watch: Seconds of a forward pass, plain and as either pass of the batched engine
            watches it, one entry per round.
    """

    model: str
    flags: str
    tensors: int = 0
    batch: dict[str, int] = field(default_factory=dict)
    passes: dict[str, Counts] = field(default_factory=dict)
    updates: dict[str, Counts] = field(default_factory=dict)
    watch: dict[str, list[float]] = field(default_factory=dict)

    def needed(self, method: str, what: str) -> int:
        """Add up the counts of a method's passes.

        Args:
            method: Its name.
            what: A field of :class:`~.counting.Counts`.

        Returns:
            The sum over its passes.
        """
        each = zip(PASSES[method], PassSeconds._fields, strict=True)
        return sum(number * getattr(self.passes[name], what) for number, name in each)

    def beyond(self, method: str, what: str) -> int:
        """Count what a method's update adds to ``none``'s beside its passes.

        Args:
            method: Its name.
            what: A field of :class:`~.counting.Counts`.

        Returns:
            How many more; 0 for ``none``.
        """
        more = getattr(self.updates[method], what) - getattr(self.updates["none"], what)
        return int(more) - self.needed(method, what) + self.needed("none", what)

    def share_beyond(self, method: str, what: str) -> float:
        """Divide what a method adds by what its passes need.

        Args:
            method: Its name.
            what: A field of :class:`~.counting.Counts`.

        Returns:
            The share, no unit.
        """
        return self.beyond(method, what) / self.needed(method, what)

    def watching(self) -> float | None:
        """Return what watching both passes of an update adds, in plain forward passes."""
        if not self.watch:
            return None
        rounds = zip(self.watch["plain"], self.watch["first"], self.watch["second"], strict=True)
        return statistics.median((one + two) / plain - 2 for plain, one, two in rounds)


def count(model: str, plan: LaunchesPlan, say: Callable[[str], None]) -> LaunchMeasurement:
    """Count an update of every method on one model.

    Args:
        model: Name of the model.
        plan: What to run.
        say: Is told in a line how far it is.

    Returns:
        The counts.

    State:
        Sets the number of threads of this process.
    """
    torch.set_num_threads(1)
    workload = Plan(models=(model,), size=plan.size).workload(model)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        write(Path(folder), workload, plan.seed)
        found = LaunchMeasurement(
            model=model, flags=" ".join(flags_of(workload, "METHOD", plan.seed, _CPU))
        )
        for method in plan.methods:
            flags = flags_of(workload, METHOD_FLAGS[method], plan.seed, _CPU)
            trainer = build_trainer(Path(folder), flags)
            batch = batch_of(trainer)
            for _ in range(plan.warm_up):
                update(trainer, [batch])
            found.updates[method] = counted(partial(update, trainer, [batch]))
            if method == "none":
                found.tensors = len(unique(trainer.optimizer.params))
                found.batch = size_of([batch])
                found.passes = _passes(trainer, batch)
                found.watch = _watching(trainer, batch, plan.repeats)
            say(f"{model}: {method}: {found.updates[method].operations} operations")
    return found


def _passes(trainer: Trainer, batch: Any) -> dict[str, Counts]:
    sample, _ = trainer._prepare_sample(batch)
    losses: list[torch.Tensor] = []

    def forward() -> None:
        losses.append(trainer.criterion(trainer.model, sample)[0])

    trainer.model.train()
    trainer.zero_grad()
    with torch.no_grad():
        without = counted(forward)
    with_graph = counted(forward)
    backward = counted(lambda: trainer.optimizer.backward(losses.pop()))
    trainer.zero_grad()
    with embedded(trainer.model) as outputs:
        forward()
    no_weights = counted(lambda: torch.autograd.grad(losses.pop(), outputs, allow_unused=True))
    return PassSeconds(without, with_graph, backward, no_weights)._asdict()  # type: ignore[arg-type]


def _watching(trainer: Trainer, batch: Any, repeats: int) -> dict[str, list[float]]:
    """Time forward passes, plain and watched; the second one perturbs nothing."""
    sample, _ = trainer._prepare_sample(batch)
    model = trainer.get_model()
    engine, tables = Engine(model), Tables()
    model.train()
    start = RandomState.capture(engine.space)
    seconds: dict[str, list[float]] = {"plain": [], "first": [], "second": []} if repeats else {}

    def forward(watch: Any) -> None:
        start.replay()
        with watch:
            trainer.criterion(model, sample)

    with no_collection(), own_projections(model):
        for number in range(repeats + 1 if repeats else 0):
            first = Recording(engine.names, tables)
            times = {"plain": timed(partial(forward, nullcontext()), _CPU)[0]}
            times["first"] = timed(partial(forward, first), _CPU)[0]
            second = Perturbing(engine.names, first.records, [None] * len(first.records), {})
            times["second"] = timed(partial(forward, second), _CPU)[0]
            for name, took in times.items() if number else ():  # the first round warms up
                seconds[name].append(took.processor)
    start.replay()
    return seconds
