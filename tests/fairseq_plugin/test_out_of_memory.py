"""Out of memory in any pass: fairseq's own recovery works as with any optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.trainer import Trainer

from tests.support import fairseq_toys as toys
from tests.support.compare import assert_same_bits
from tests.support.workers import run_workers

# Forward passes of an update of two micro-batches (of four sentences together for
# the loop), after the first update of delta_sam, which runs one more.
PASSES = {
    "none": 2,
    "sam": 4,
    "delta_sam": 8,
    "per_instance": 4,
    "per_instance_loop": 8,
    "groups": 8,
}
# Two workers without a perturbation are fairseq's affair: with legacy_ddp one of
# them leaves the other alone after an out-of-memory in any but the last micro-batch.
CASES = [
    (method, scope, number)
    for method, passes in PASSES.items()
    for scope in ("update", "micro")
    for number in range(1, passes + 1)
]
# SAM's third of four passes: the first micro-batch of the descent.
WATCHED = ("sam", "update", 3)
SHARED_CASES = [case for case in CASES if case[0] != "none"]


def run_out_of_memory(trainer: Trainer, number: int) -> None:
    """Let one forward pass from now on fail as CUDA does."""
    model, calls = trainer.get_model(), []
    forward = model.forward

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(*args, **kwargs)

    model.forward = failing


def displacements(trainer: Trainer) -> list[float]:
    """Record how far from here the weights are in each forward pass from now on."""
    params = list(trainer.get_model().parameters())
    home = [p.detach().clone() for p in params]
    found: list[float] = []

    def look(*_: Any) -> None:
        parts = [(p.detach() - h).flatten() for p, h in zip(params, home, strict=True)]
        found.append(torch.cat(parts).norm().item())

    trainer.get_model().register_forward_pre_hook(look)
    return found


def flags_of(method: str, scope: str) -> tuple[str, ...]:
    if method == "groups":
        return (
            "--sam-method",
            "sam",
            "--sam-groups",
            "2",
            "--sam-scope",
            scope,
            "--batch-size",
            "2",
        )
    name = method.removesuffix("_loop")
    engine = "batched" if method == name else "loop"
    return (
        *("--sam-method", name, "--sam-per-instance-engine", engine),
        *("--sam-scope", scope, "--batch-size", "2"),
    )


@pytest.mark.parametrize(("method", "scope", "number"), CASES)
def test_one_worker_skips_the_update(
    translation: Path, method: str, scope: str, number: int
) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags_of(method, scope))
    samples = toys.batches(trainer)
    trainer.train_step(samples[:2])
    before = toys.parameters(trainer)
    run_out_of_memory(trainer, number)
    assert trainer.train_step(samples[2:4]) is None
    assert trainer.get_num_updates() == 1
    assert_same_bits(toys.parameters(trainer), before)
    assert all(p.grad is None or not p.grad.any() for p in trainer.get_model().parameters())
    # And goes on as if that batch had never been there.
    twin = toys.make_trainer(translation, *toys.TRANSLATION, *flags_of(method, scope))
    twin.train_step(samples[:2])
    for one in (trainer, twin):
        one.train_step(samples[4:6])
    assert_same_bits(toys.parameters(trainer), toys.parameters(twin))


def train_with_one_failing(rank: int, count: int, port: int, data: Path) -> dict[Any, Any]:
    """Run three updates per case; the second worker fails once, in the second of them."""
    init = toys.join_workers(data, toys.TRANSLATION, rank, count, port)
    found = {}
    for case in SHARED_CASES:
        method, scope, number = case
        trainer = toys.make_trainer(data, *toys.TRANSLATION, *flags_of(method, scope), *init)
        states = [toys.parameters(trainer)]
        after_failure: list[float] = []
        for update in range(3):
            start = 8 * update + 4 * rank
            group = [toys.sentences(trainer, range(s, s + 2)) for s in (start, start + 2)]
            if update == 1 and rank == 1:
                run_out_of_memory(trainer, number)
                if case == WATCHED:
                    after_failure = displacements(trainer)
            trainer.train_step(group)
            states.append(toys.parameters(trainer))
        found[case] = {"states": states, "moved": after_failure[: PASSES[method]]}
    return found


@pytest.fixture(scope="module")
def workers(translation: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("out-of-memory")
    return run_workers(train_with_one_failing, 2, folder, translation)


@pytest.mark.multiprocess
@pytest.mark.parametrize("case", SHARED_CASES, ids=str)
def test_two_workers_go_on_together(workers: list[Any], case: tuple[str, str, int]) -> None:
    one, two = (w[case]["states"] for w in workers)
    for update in range(1, 4):
        assert_same_bits(one[update], two[update])
        assert all(torch.isfinite(v).all() for v in one[update].values())
        name = next(iter(one[update]))
        assert not torch.equal(one[update][name], one[update - 1][name]), "nothing was learnt"


@pytest.mark.multiprocess
def test_the_micro_batches_after_a_failed_one_keep_their_perturbation(workers: list[Any]) -> None:
    moved = workers[1][WATCHED]["moved"]
    assert moved == pytest.approx([0.0, 0.0, 0.05, 0.05], abs=1e-5)
