"""What the launches benchmark runs, checked before anything is built."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from deltasam_fairseq.benchmarks.cost_model import PASSES
from deltasam_fairseq.benchmarks.plan import MODELS, SIZES, all_known
from deltasam_fairseq.errors import UserError, at_least


@dataclass(frozen=True)
class LaunchesPlan:
    """One run of the launches benchmark.

    Args:
        models: Names of the models.
        methods: Names of the methods; ``none`` is among them, because it shows what the
            passes need.
        size: Of the models; counts depend on the layers, not on the width.
        warm_up: Updates before the one that is counted; the batched engine needs two to
            settle where the sentences are.
        repeats: Rounds of the times that Python takes; 0: none is measured.
        seed: Seed of data and models.

    Raises:
        UserError: If a name is unknown or a number is outside its range; the message
            names the flag.
    """

    models: tuple[str, ...] = ("translation", "bert_base", "roberta_large", "bart_large")
    methods: tuple[str, ...] = tuple(PASSES)
    size: str = "narrow"
    warm_up: int = 2
    repeats: int = 11
    seed: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        all_known("--model", self.models, MODELS)
        all_known("--methods", self.methods, tuple(PASSES))
        all_known("--size", (self.size,), SIZES)
        if "none" not in self.methods:
            raise UserError("--methods must include none: its passes are what all others need")
        at_least("--warm-up", self.warm_up, 2)
        at_least("--repeats", self.repeats, 0)
        at_least("--seed", self.seed, 0)

    def settings(self) -> dict[str, Any]:
        """Return all values by name, those that were defaults included."""
        return asdict(self)

    def command(self) -> str:
        """Return the command line that runs this plan again."""
        return (
            f"deltasam bench launches --model {','.join(self.models)} "
            f"--methods {','.join(self.methods)} --size {self.size} --warm-up {self.warm_up} "
            f"--repeats {self.repeats} --seed {self.seed}"
        )
