"""Time and peak memory per update of the methods, side by side in one process.

A shared machine is faster at one minute than at the next, so seconds of two
separate runs say little. Here the methods take turns, A B C D A B C D, and
what counts is the ratio within a round, whose times were taken within seconds
of each other. All of them run on the same batch, through fairseq's trainer.
"""

from __future__ import annotations

import gc
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from torch import nn

from deltasam_fairseq.benchmarks.measurement import Measurement, Times
from deltasam_fairseq.benchmarks.memory import peak_bytes
from deltasam_fairseq.benchmarks.methods import flags_of_method
from deltasam_fairseq.benchmarks.plan import Plan
from deltasam_fairseq.benchmarks.synthetic import write
from deltasam_fairseq.benchmarks.timing import no_collection, timed
from deltasam_fairseq.benchmarks.trainers import (
    batch_of,
    build_trainer,
    flags_of,
    parameter_bytes,
    parameter_count,
)
from deltasam_fairseq.benchmarks.working import working_seconds


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
    deadline = time.monotonic() + (plan.seconds or math.inf)
    workload, device = plan.workload(model), torch.device(plan.device)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        write(Path(folder), workload, plan.seed)
        flags = {method: flags_of_method(method, paired=workload.paired) for method in plan.methods}

        def line(method: str) -> list[str]:
            return flags_of(workload, method, plan.seed, device, plan.precision)

        trainers = {method: build_trainer(Path(folder), line(own)) for method, own in flags.items()}
        batches = [batch_of(trainers["none"])] * plan.update_freq
        found = Measurement(
            model=model,
            flags=" ".join(line("METHOD")),
            parameters=parameter_count(trainers["none"]),
            parameter_bytes=parameter_bytes(trainers["none"]),
            batch=size_of(batches),
            method_flags=flags,
            width=workload.width,
        )
        say(f"{model}: {found.parameters / 1e6:.1f} million parameters, warming up")
        for trainer in trainers.values():
            for _ in range(plan.warm_up):
                update(trainer, batches)
        say(f"{model}: counting memory")
        _count_memory(found, trainers, batches)
        for method, trainer in trainers.items():
            found.calls[method] = calls_of(trainer, batches)
        _take_turns(found, trainers, batches, plan, deadline=deadline, say=say)
        if plan.profile:
            say(f"{model}: profiling")
            for method, trainer in trainers.items():
                found.working[method] = working_seconds(partial(update, trainer, batches), device)
    return found


def size_of(batches: Sequence[Any]) -> dict[str, int]:
    """Count the sentences and tokens of an update's mini-batches, padding not counted."""
    return {
        "sentences": sum(int(b["id"].numel()) for b in batches),
        "source_tokens": sum(int(b["net_input"]["src_lengths"].sum()) for b in batches),
        "target_tokens": sum(
            int(b["ntokens"]) for b in batches if "prev_output_tokens" in b["net_input"]
        ),
    }


def _count_memory(found: Measurement, trainers: dict[str, Trainer], batches: Sequence[Any]) -> None:
    for method, trainer in trainers.items():
        trainer.zero_grad()
        found.peak[method] = peak_bytes(partial(update, trainer, batches), trainer.device)
    base = trainers["none"]
    sample, _ = base._prepare_sample(batches[0])
    found.forward_bytes = peak_bytes(lambda: base.criterion(base.model, sample), base.device)


def calls_of(trainer: Trainer, batches: Sequence[Any]) -> dict[str, float]:
    """Count the passes of an update, in passes over its batch.

    Args:
        trainer: The trainer.
        batches: The micro-batches of an update.

    Returns:
        ``forward`` and ``backward``: rows that went through the model, or whose outputs received
        a gradient, over the rows of the batch. A doubled batch counts twice.
    """
    rows = {"forward": 0, "backward": 0}

    def count(_module: nn.Module, _inputs: Any, kwargs: Any, output: Any) -> None:
        number = len(kwargs["src_tokens"])
        rows["forward"] += number
        logits = output[0] if isinstance(output, tuple) else output
        if logits.requires_grad:
            logits.register_hook(lambda _: rows.update(backward=rows["backward"] + number))

    hook = trainer.get_model().register_forward_hook(count, with_kwargs=True)
    try:
        update(trainer, batches)
    finally:
        hook.remove()
    sentences = sum(int(batch["id"].numel()) for batch in batches)
    return {name: number / sentences for name, number in rows.items()}


def _take_turns(
    found: Measurement,
    trainers: dict[str, Trainer],
    batches: Sequence[Any],
    plan: Plan,
    *,
    deadline: float,
    say: Callable[[str], None],
) -> None:
    found.updates = {method: [] for method in trainers}
    found.fallbacks = dict.fromkeys(trainers, 0.0)
    found.skipped = dict.fromkeys(trainers, 0)
    with no_collection():
        for number in range(plan.repeats):
            if number and time.monotonic() > deadline:
                say(f"{found.model}: --seconds {plan.seconds} are over")
                break
            gc.collect()
            begun = time.perf_counter()
            for method, trainer in trainers.items():
                times = None
                if plan.takes_part(method, number):
                    made = trainer.get_num_updates()
                    times, fallback = timed(partial(update, trainer, batches), trainer.device)
                    found.fallbacks[method] += fallback
                    found.skipped[method] += trainer.get_num_updates() == made
                found.updates[method].append(times)
            found.passes.append(_passes(trainers["none"], batches[0]))
            took = time.perf_counter() - begun
            say(f"{found.model}: round {number + 1} of {plan.repeats}, {took:.1f} s")


def update(trainer: Trainer, batches: Sequence[Any]) -> float:
    """Run one update, and return whether it took a fallback."""
    with metrics.aggregate(new_root=True) as seen:
        trainer.train_step(list(batches))
    meter = seen.get("sam_fallback")
    return 0.0 if meter is None else float(meter.avg)


def _passes(trainer: Trainer, batch: Any) -> tuple[Times, ...]:
    """Time the passes over a micro-batch apart, as the trainer's task runs them."""
    sample, _ = trainer._prepare_sample(batch)
    device = trainer.device
    trainer.zero_grad()
    trainer.model.train()

    def forward() -> torch.Tensor:
        loss: torch.Tensor = trainer.criterion(trainer.model, sample)[0]
        return loss

    with torch.no_grad():
        without, _ = timed(forward, device)
    with_graph, loss = timed(forward, device)
    backward, _ = timed(lambda: trainer.optimizer.backward(loss), device)
    trainer.zero_grad()
    with embedded(trainer.model) as outputs:
        loss = forward()
    no_weights, _ = timed(lambda: torch.autograd.grad(loss, outputs, allow_unused=True), device)
    return without, with_graph, backward, no_weights


@contextmanager
def embedded(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect what a model's embeddings give: below them there is no layer to go back through.

    Args:
        model: The model.

    Yields:
        The outputs, filled by every forward pass within the block.
    """
    outputs: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for module in model.modules()
        if isinstance(module, nn.Embedding)
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back fairseq's log and the warnings of what it uses."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
