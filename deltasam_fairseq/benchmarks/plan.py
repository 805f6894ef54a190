"""What a benchmark runs, checked before anything is built."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from deltasam_fairseq.benchmarks.environment import cores
from deltasam_fairseq.benchmarks.measurement import CLOCKS
from deltasam_fairseq.benchmarks.methods import METHODS, SLOW_METHODS, flags_of_method
from deltasam_fairseq.benchmarks.workloads import WORKLOADS, Workload
from deltasam_fairseq.choices import PRECISIONS
from deltasam_fairseq.errors import UserError, at_least
from deltasam_fairseq.registry import nearest

MODELS = tuple(WORKLOADS)
# What ``--model both`` means: they take minutes together, on any machine.
BOTH = ("translation", "classification")
SIZES = ("default", "tiny", "narrow")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Plan:
    """One run of the step benchmark.

    Args:
        models: Names of the models.
        methods: Names of the methods, in the order in which they take turns;
            ``none`` is among them, because the others are compared with it.
        repeats: Rounds.
        slow_every: In which rounds ``per_instance_loop`` takes part: the first
            and every so many after it.
        warm_up: Updates of each method before the first round; the batched engine
            needs two to settle where the sentences are.
        threads: Threads of one operator; 0: as many as there are cores.
        size: ``default``, ``tiny`` to see that it works, or ``narrow``: all layers, of
            a width that makes a forward pass the work of Python.
        sentences: How many sentences the batches have; 0: as many as are the
            model's own.
        tokens: How many tokens each of them has, and each target; 0: the lengths
            that are the model's own.
        update_freq: Micro-batches of an update, each of that shape.
        seconds: Of a model: no round begins after as many, but for the first; 0: no limit.
        profile: Whether to measure how long the device works during an update.
        seed: Seed of data and models.
        device: ``cpu`` or ``cuda``; empty: the GPU, if there is one and its time counts.
        precision: One of ``PRECISIONS``, as fairseq has it.
        clock: Which time the table shows and the limits speak of, ``elapsed``
            or ``processor``. The latter is for one thread on a busy machine.

    Raises:
        UserError: If a name is unknown or a number is outside its range; the
            message names the flag.
    """

    models: tuple[str, ...] = BOTH
    methods: tuple[str, ...] = METHODS
    repeats: int = 15
    slow_every: int = 5
    warm_up: int = 2
    threads: int = 0
    size: str = "default"
    sentences: int = 0
    tokens: int = 0
    update_freq: int = 1
    seconds: int = 0
    profile: bool = False
    seed: int = 1
    device: str = ""
    precision: str = "fp32"
    clock: str = "elapsed"

    def __post_init__(self) -> None:
        """Check the values, and find out what the machine has."""
        if not self.device:
            on_gpu = torch.cuda.is_available() and self.clock != "processor"
            object.__setattr__(self, "device", "cuda" if on_gpu else "cpu")
        all_known("--model", self.models, MODELS)
        for method in self.methods:
            flags_of_method(method, paired=False)
        once("--methods", self.methods)
        all_known("--size", (self.size,), SIZES)
        all_known("--device", (self.device,), DEVICES)
        all_known("--precision", (self.precision,), PRECISIONS)
        all_known("--clock", (self.clock,), CLOCKS)
        if "none" not in self.methods:
            raise UserError("--methods must include none: the others are compared with it")
        for flag, value, least in (
            ("--repeats", self.repeats, 1),
            ("--slow-every", self.slow_every, 1),
            ("--warm-up", self.warm_up, 1),
            ("--threads", self.threads, 0),
            ("--seed", self.seed, 0),
            ("--sentences", self.sentences, 0),
            ("--tokens", self.tokens, 0),
            ("--update-freq", self.update_freq, 1),
            ("--seconds", self.seconds, 0),
        ):
            at_least(flag, value, least)
        for model in self.models:
            positions = WORKLOADS[model][self.size].positions
            if self.tokens == 1 or self.tokens > positions:
                raise UserError(
                    f"--tokens {self.tokens}: a sentence of {model} has 2 to {positions} tokens"
                )
        if self.device == "cuda" and self.clock == "processor":
            raise UserError("--clock processor: with --device cuda the GPU does the work")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: torch finds no GPU that it can use")
        if self.device == "cpu" and self.precision == "bf16":
            raise UserError("--precision bf16: fairseq has it on GPUs alone; fp16 or fp32")
        if not self.threads:
            object.__setattr__(self, "threads", cores())

    def takes_part(self, method: str, round_number: int) -> bool:
        """Tell whether a method is run in a round.

        Args:
            method: Name of the method.
            round_number: Number of the round, from 0.

        Returns:
            True, but for the slow ones in most rounds.
        """
        slow = method.partition("+")[0] in SLOW_METHODS
        return not slow or round_number % self.slow_every == 0

    def workload(self, model: str) -> Workload:
        """Return a model and its batch.

        Args:
            model: Its name.

        Returns:
            The workload, of the shape that was asked for.
        """
        return WORKLOADS[model][self.size].ordered(self.sentences, self.tokens)

    def settings(self) -> dict[str, Any]:
        """Return all values by name, those that were defaults included."""
        return asdict(self)

    def command(self) -> str:
        """Return the command line that runs this plan again."""
        model = "both" if self.models == BOTH else ",".join(self.models)
        shape = f"--sentences {self.sentences} " if self.sentences else ""
        shape += f"--tokens {self.tokens} " if self.tokens else ""
        shape += f"--update-freq {self.update_freq} " if self.update_freq > 1 else ""
        limit = f"--seconds {self.seconds} " if self.seconds else ""
        limit += "--profile " if self.profile else ""
        precision = f"--precision {self.precision} " if self.precision != "fp32" else ""
        return (
            f"deltasam bench step --model {model} --methods {','.join(self.methods)} "
            f"--repeats {self.repeats} --slow-every {self.slow_every} --warm-up {self.warm_up} "
            f"--threads {self.threads} --size {self.size} {shape}{limit}"
            f"--seed {self.seed} --device {self.device} {precision}--clock {self.clock}"
        )


def all_known(flag: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Check names that were given with commas between.

    Args:
        flag: Where they were given.
        given: The names.
        known: Those that may be among them.

    Raises:
        UserError: If one is unknown.
    """
    for name in given:
        if name not in known:
            raise UserError(f"{flag}: unknown name {name!r}{nearest(name, known)}")
    once(flag, given)


def once(flag: str, given: tuple[str, ...]) -> None:
    """Check that each of some names was given once.

    Args:
        flag: Where they were given.
        given: The names.

    Raises:
        UserError: If one occurs twice, or there is none.
    """
    if not given or len(set(given)) != len(given):
        raise UserError(f"{flag} must name each of its values once, got {','.join(given)!r}")
