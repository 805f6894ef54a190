"""Time and peak memory per update of the methods, side by side in one process.

A shared machine is faster at one minute than at the next, so seconds of two
separate runs say little. Here the methods take turns, A B C D A B C D, and
what counts is the ratio within a round, whose times were taken within seconds
of each other. All of them run on the same batch, through fairseq's trainer.
"""

from __future__ import annotations

import gc
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairseq.logging import metrics
from fairseq.trainer import Trainer

from deltasam_fairseq.benchmarks.measurement import Measurement, Times
from deltasam_fairseq.benchmarks.memory import peak_bytes
from deltasam_fairseq.benchmarks.plan import Plan
from deltasam_fairseq.benchmarks.workloads import (
    WORKLOADS,
    batch_of,
    build_trainer,
    flags_of,
    parameter_bytes,
    parameter_count,
)


def measure(model: str, plan: Plan, say: Callable[[str], None]) -> Measurement:
    """Measure all methods of a plan on one model.

    Args:
        model: Name of the model.
        plan: What to run, and how often.
        say: Is told in a line how far it is.

    Returns:
        What was measured.

    State:
        Sets the number of threads of this process.
    """
    torch.set_num_threads(plan.threads)
    workload, device = WORKLOADS[model][plan.size], torch.device(plan.device)
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        workload.write(Path(folder), workload.shape, plan.seed)
        trainers = {
            method: build_trainer(Path(folder), flags_of(workload, method, plan.seed, device))
            for method in plan.methods
        }
        batch = batch_of(trainers["none"])
        found = Measurement(
            model=model,
            flags=" ".join(flags_of(workload, "METHOD", plan.seed, device)),
            parameters=parameter_count(trainers["none"]),
            parameter_bytes=parameter_bytes(trainers["none"]),
            batch=_size_of(batch),
        )
        say(f"{model}: {found.parameters / 1e6:.1f} million parameters, warming up")
        for trainer in trainers.values():
            for _ in range(plan.warm_up):
                _update(trainer, batch)
        say(f"{model}: counting memory")
        _count_memory(found, trainers, batch)
        _take_turns(found, trainers, batch, plan, say)
    return found


def _size_of(batch: Any) -> dict[str, int]:
    translated = "prev_output_tokens" in batch["net_input"]
    return {
        "sentences": int(batch["id"].numel()),
        "source_tokens": int(batch["net_input"]["src_lengths"].sum()),
        "target_tokens": int(batch["ntokens"]) if translated else 0,
    }


def _count_memory(found: Measurement, trainers: dict[str, Trainer], batch: Any) -> None:
    for method, trainer in trainers.items():
        trainer.zero_grad()
        found.peak[method] = peak_bytes(partial(_update, trainer, batch), trainer.device)
    base = trainers["none"]
    sample, _ = base._prepare_sample(batch)
    found.forward_bytes = peak_bytes(lambda: base.criterion(base.model, sample), base.device)


def _take_turns(
    found: Measurement,
    trainers: dict[str, Trainer],
    batch: Any,
    plan: Plan,
    say: Callable[[str], None],
) -> None:
    found.updates = {method: [] for method in trainers}
    found.fallbacks = dict.fromkeys(trainers, 0.0)
    with _no_collection():
        for number in range(plan.repeats):
            gc.collect()
            begun = time.perf_counter()
            for method, trainer in trainers.items():
                times = None
                if plan.takes_part(method, number):
                    times, fallback = _timed(partial(_update, trainer, batch), trainer.device)
                    found.fallbacks[method] += fallback
                found.updates[method].append(times)
            found.passes.append(_passes(trainers["none"], batch))
            took = time.perf_counter() - begun
            say(f"{found.model}: round {number + 1} of {plan.repeats}, {took:.1f} s")


def _update(trainer: Trainer, batch: Any) -> float:
    """Run one update, and return whether it took a fallback."""
    with metrics.aggregate(new_root=True) as seen:
        trainer.train_step([batch])
    meter = seen.get("sam_fallback")
    return 0.0 if meter is None else float(meter.avg)


def _passes(trainer: Trainer, batch: Any) -> tuple[Times, Times, Times]:
    """Time the passes of an update apart, as the trainer's task runs them."""
    sample, _ = trainer._prepare_sample(batch)
    trainer.zero_grad()
    trainer.model.train()

    def forward() -> torch.Tensor:
        loss: torch.Tensor = trainer.criterion(trainer.model, sample)[0]
        return loss

    with torch.no_grad():
        without, _ = _timed(forward, trainer.device)
    with_graph, loss = _timed(forward, trainer.device)
    backward, _ = _timed(lambda: trainer.optimizer.backward(loss), trainer.device)
    trainer.zero_grad()
    return without, with_graph, backward


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[Times, Any]:
    _finish(device)
    begun, worked = time.perf_counter(), time.process_time()
    result = work()
    _finish(device)
    return Times(time.perf_counter() - begun, time.process_time() - worked), result


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running inside a measurement."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back fairseq's log and the warnings of what it uses."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
