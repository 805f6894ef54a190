"""A batched per-instance step beside a SAM step, against the length of the sentences.

How the engine keeps the gradients of linear layers is a question of length: thin
products of factors cost ``T^2 (a + b)``, formed matrices ``T a b``
(``per_instance/strategy.py``). So every length is measured with thin
products always, with formed matrices always, and with the plan's own choice, in
turns with SAM as in the step benchmark.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from deltasam_fairseq.benchmarks.encoder import Encoder, Problem
from deltasam_fairseq.benchmarks.length_plan import LengthPlan
from deltasam_fairseq.benchmarks.measurement import Times
from deltasam_fairseq.benchmarks.timing import no_collection, timed
from deltasam_fairseq.core import sam_step
from deltasam_fairseq.per_instance import Engine, Plan, batched_per_instance_step
from deltasam_fairseq.per_instance.factors import Form, Outer


class FormedPlan(Plan):
    """Every sentence's gradient of every linear layer's weight is formed."""

    def forms_gradients(self, forms: Sequence[Form], shape: torch.Size) -> bool:  # noqa: D102
        return any(isinstance(form, Outer) for form in forms)


# By name, in the order in which they take turns.
STRATEGIES = {"thin": Plan(crossover=math.inf), "formed": FormedPlan(), "plan": Plan()}
_RHO = 0.05


@dataclass
class LengthMeasurement:
    """What was measured at one length.

    Args:
        tokens: Of each sentence.
        sentences: Of the batch.
        steps: By ``sam`` and strategy, one entry per round.
    """

    tokens: int
    sentences: int
    steps: dict[str, list[Times]] = field(default_factory=dict)

    def seconds(self, step: str, clock: str) -> list[float]:
        """List what a step took.

        Args:
            step: ``sam`` or a strategy.
            clock: ``elapsed`` or ``processor``.

        Returns:
            Seconds, one entry per round.
        """
        return [getattr(times, clock) for times in self.steps[step]]

    def ratios(self, strategy: str, clock: str) -> list[float]:
        """Divide a strategy's times by SAM's, round by round.

        Args:
            strategy: Its name.
            clock: ``elapsed`` or ``processor``.

        Returns:
            The ratios, no unit.
        """
        pairs = zip(self.seconds(strategy, clock), self.seconds("sam", clock), strict=True)
        return [above / below for above, below in pairs]


def measure_lengths(plan: LengthPlan, say: Callable[[str], None]) -> list[LengthMeasurement]:
    """Measure every length of a plan.

    Args:
        plan: What to run, and how often.
        say: Is told in a line how far it is.

    Returns:
        One measurement per length, in the plan's order.

    State:
        Sets the number of threads of this process and its random seed.
    """
    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    encoder = Encoder(layers=plan.layers, width=plan.width, heads=plan.heads, words=plan.words)
    encoder.to(plan.device)
    found = []
    for tokens in plan.lengths:
        sentences = plan.sentences(tokens)
        problem = Problem(encoder, sentences=sentences, tokens=tokens, seed=plan.seed)
        steps = take_turns(problem, STRATEGIES, repeats=plan.repeats, warm_up=plan.warm_up)
        found.append(LengthMeasurement(tokens, sentences, steps))
        say(f"{sentences} x {tokens} tokens: {plan.repeats} rounds")
    return found


def take_turns(
    problem: Problem, strategies: dict[str, Plan], *, repeats: int, warm_up: int = 2
) -> dict[str, list[Times]]:
    """Run a SAM step and a batched step of each strategy, round after round.

    Args:
        problem: Model, batch and losses.
        strategies: Plans of the engine, by name.
        repeats: Rounds.
        warm_up: Steps of each before the first round; two batches settle where the
            sentences are.

    Returns:
        By ``sam`` and strategy, one entry per round.

    State:
        Leaves no gradients.
    """
    steps: dict[str, Callable[[], object]] = {
        "sam": lambda: sam_step(problem.params, problem.losses, rho=_RHO)
    }
    for name, chosen in strategies.items():
        engine = Engine(problem.encoder, plan=chosen)
        steps[name] = partial(batched_per_instance_step, engine, problem.losses, rho=_RHO)
    for step in steps.values():
        for _ in range(warm_up):
            step()
    device = problem.tokens.device
    found: dict[str, list[Times]] = {name: [] for name in steps}
    with no_collection():
        for _ in range(repeats):
            gc.collect()
            for name, step in steps.items():
                problem.encoder.zero_grad()
                times, _ = timed(step, device)
                found[name].append(times)
    problem.encoder.zero_grad()
    return found
