"""Time and peak memory per update of the variants, side by side in one process.

A shared machine is faster at one minute than at the next, so seconds of two separate runs say
little. Here the variants take turns, A B C D A B C D, and the ratios within a round are compared,
whose times were taken within seconds of each other. All of them run on the same batch, through
fairseq's trainer.
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairseq.trainer import Trainer

from deltasam_fairseq.benchmarks.instruments import (
    no_collection,
    peak_bytes,
    timed,
    working_seconds,
)
from deltasam_fairseq.benchmarks.plan import Plan
from deltasam_fairseq.benchmarks.record import Measurement
from deltasam_fairseq.benchmarks.trainers import (
    batch_of,
    build_trainer,
    calls_of,
    each_pass,
    flags_of,
    quiet,
    size_of,
    update,
    write,
)
from deltasam_fairseq.benchmarks.variants import ALL_VARIANTS, flags_of_variant
from deltasam_fairseq.benchmarks.workloads import WORKLOADS
from deltasam_fairseq.core.vectors import unique

Trainers = Mapping[str, Trainer]


def measure(model: str, plan: Plan, say: Callable[[str], None]) -> Measurement:
    """Return the measurement of all variants of a plan on one model.

    Args:
        model: Its name.
        plan: What to run, and how often.
        say: Prints a line of progress.

    State:
        Sets the number of threads of this process.
    """
    torch.set_num_threads(plan.threads)
    deadline = time.monotonic() + (plan.seconds or math.inf)
    workload = WORKLOADS[model][plan.size].ordered(plan.sentences, plan.tokens)
    device = torch.device(plan.device)

    def line(method: str) -> list[str]:
        return flags_of(workload, method, plan.seed, device, plan.precision)

    with quiet(), tempfile.TemporaryDirectory() as folder:
        write(Path(folder), workload, plan.seed)
        flags = {name: flags_of_variant(name, paired=workload.paired) for name in plan.methods}
        trainers = {name: build_trainer(Path(folder), line(own)) for name, own in flags.items()}
        trained = [p for p in trainers["none"].model.parameters() if p.requires_grad]
        batches = [batch_of(trainers["none"])] * plan.update_freq
        found = Measurement(
            model=model,
            flags=" ".join(line("METHOD")),
            method_flags=flags,
            width=workload.width,
            parameters=sum(p.numel() for p in unique(trained)),
            parameter_bytes=sum(p.numel() * p.element_size() for p in unique(trained)),
            batch=size_of(batches),
        )
        say(f"{model}: {found.parameters / 1e6:.1f} million parameters, warming up")
        for trainer in trainers.values():
            for _ in range(plan.warm_up):
                update(trainer, batches)
        say(f"{model}: counting memory")
        _count_memory(found, trainers, batches)
        found.calls = {name: calls_of(trainer, batches) for name, trainer in trainers.items()}
        _take_turns(found, trainers, batches, plan, deadline=deadline, say=say)
        if plan.profile:
            say(f"{model}: profiling")
            for name, trainer in trainers.items():
                found.working[name] = working_seconds(partial(update, trainer, batches), device)
    return found


def _count_memory(found: Measurement, trainers: Trainers, batches: Sequence[Any]) -> None:
    for name, trainer in trainers.items():
        trainer.zero_grad()
        found.peak[name] = peak_bytes(partial(update, trainer, batches), trainer.device)
    base = trainers["none"]
    sample, _ = base._prepare_sample(batches[0])
    found.forward_bytes = peak_bytes(lambda: base.criterion(base.model, sample), base.device)


def _take_turns(
    found: Measurement,
    trainers: Trainers,
    batches: Sequence[Any],
    plan: Plan,
    *,
    deadline: float,
    say: Callable[[str], None],
) -> None:
    found.updates = {name: [] for name in trainers}
    found.fallbacks = dict.fromkeys(trainers, 0.0)
    found.skipped = dict.fromkeys(trainers, 0)
    base = trainers["none"]
    with no_collection():
        for number in range(plan.repeats):
            if number and time.monotonic() > deadline:
                say(f"{found.model}: --seconds {plan.seconds} are over")
                break
            gc.collect()
            begun = time.perf_counter()
            for name, trainer in trainers.items():
                times = None
                if number % plan.slow_every == 0 or not ALL_VARIANTS[name].slow:
                    made = trainer.get_num_updates()
                    times, fallback = timed(partial(update, trainer, batches), trainer.device)
                    found.fallbacks[name] += fallback
                    found.skipped[name] += trainer.get_num_updates() == made
                found.updates[name].append(times)
            found.passes.append(
                each_pass(base, batches[0], lambda work: timed(work, base.device)[0])
            )
            took = time.perf_counter() - begun
            say(f"{found.model}: round {number + 1} of {plan.repeats}, {took:.1f} s")
