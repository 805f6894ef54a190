"""What the length benchmark runs, checked before anything is built."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from deltasam_fairseq.benchmarks.environment import cores
from deltasam_fairseq.benchmarks.measurement import CLOCKS
from deltasam_fairseq.benchmarks.plan import DEVICES
from deltasam_fairseq.errors import UserError, at_least
from deltasam_fairseq.registry import nearest


@dataclass(frozen=True)
class LengthPlan:
    """One run of the length benchmark.

    Args:
        width: Width of the model's layers; inner layers have four times as much.
        heads: Of each attention.
        layers: How many.
        words: Size of the vocabulary.
        lengths: Tokens of a sentence, one batch each.
        batch_tokens: Tokens of every batch: the longer the sentences, the fewer.
        repeats: Rounds.
        warm_up: Steps before the first round; two batches settle where the
            sentences are.
        threads: Threads of one operator; 0: as many as there are cores.
        seed: Seed of words and weights.
        device: ``cpu`` or ``cuda``.
        clock: Which time the table shows, ``elapsed`` or ``processor``.

    Raises:
        UserError: If a number is outside its range; the message names the flag.
    """

    width: int = 384
    heads: int = 12
    layers: int = 2
    words: int = 8000
    lengths: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)
    batch_tokens: int = 1024
    repeats: int = 7
    warm_up: int = 2
    threads: int = 0
    seed: int = 1
    device: str = "cpu"
    clock: str = "elapsed"

    def __post_init__(self) -> None:
        """Check the values, and find out how many cores there are."""
        for flag, value, least in (
            ("--width", self.width, 1),
            ("--heads", self.heads, 1),
            ("--layers", self.layers, 1),
            ("--words", self.words, 2),
            ("--repeats", self.repeats, 1),
            ("--warm-up", self.warm_up, 2),
            ("--threads", self.threads, 0),
            ("--seed", self.seed, 0),
        ):
            at_least(flag, value, least)
        if self.width % self.heads:
            raise UserError(f"--width {self.width} is not divisible by --heads {self.heads}")
        if not self.lengths or len(set(self.lengths)) != len(self.lengths):
            raise UserError(f"--lengths must name each length once, got {self.lengths}")
        for length in self.lengths:
            if not 1 <= length <= self.batch_tokens:
                raise UserError(
                    f"--lengths: {length} is not between 1 and --batch-tokens {self.batch_tokens}"
                )
        for flag, name, known in (
            ("--device", self.device, DEVICES),
            ("--clock", self.clock, CLOCKS),
        ):
            if name not in known:
                raise UserError(f"{flag}: unknown name {name!r}{nearest(name, known)}")
        if self.device == "cuda" and self.clock == "processor":
            raise UserError("--clock processor: with --device cuda the GPU does the work")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: torch finds no GPU that it can use")
        if not self.threads:
            object.__setattr__(self, "threads", cores())

    def sentences(self, length: int) -> int:
        """Return how many sentences of a length make a batch.

        Args:
            length: Tokens of each.

        Returns:
            At least 1.
        """
        return self.batch_tokens // length

    def settings(self) -> dict[str, Any]:
        """Return all values by name, those that were defaults included."""
        return asdict(self)

    def command(self) -> str:
        """Return the command line that runs this plan again."""
        values = {**self.settings(), "lengths": ",".join(map(str, self.lengths))}
        flags = [f"--{name.replace('_', '-')} {value}" for name, value in values.items()]
        return " ".join(["deltasam bench length", *flags])
