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
    "groups_loop": 8,
    "groups": 4,
}
# Two workers without a perturbation are fairseq's affair: with legacy_ddp one of
# them leaves the other alone after an out-of-memory in any but the last micro-batch.
KINDS = [(method, scope) for method in PASSES for scope in ("update", "micro")]
KINDS.remove(("groups", "update"))  # over both micro-batches, which is the loop's
SHARED = [kind for kind in KINDS if kind[0] != "none"]
# SAM's third of four passes: the first micro-batch of the descent.
WATCHED = ("sam", "update", 3)
OUT_OF_MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


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


def trainer_of(data: Path, method: str, scope: str, *more: str) -> Trainer:
    name = method.removesuffix("_loop")
    engine = "loop" if method.endswith("_loop") else "auto"
    groups = ("--sam-groups", "2") if name == "groups" else ()
    name = "sam" if groups else name
    flags = ("--sam-method", name, "--sam-scope", scope, "--sam-per-instance-engine", engine)
    return toys.make_trainer(data, *toys.TRANSLATION, *flags, *groups, "--batch-size", "2", *more)


@pytest.mark.parametrize(("method", "scope"), KINDS)
def test_one_worker_skips_the_update(translation: Path, method: str, scope: str) -> None:
    """Whichever pass it is; and training goes on as if that batch had never been there."""
    trainer, twin = (trainer_of(translation, method, scope) for _ in range(2))
    samples = toys.batches(trainer)
    for one in (trainer, twin):
        one.train_step(samples[:2])
    for number in range(1, PASSES[method] + 1):
        print(f"pass {number}")
        for one in (trainer, twin):
            one.set_num_updates(1)  # which decides on the groups, and so on the passes
        before = toys.parameters(trainer)
        toys.break_forward(trainer, number, OUT_OF_MEMORY)
        assert trainer.train_step(samples[2:4]) is None
        del trainer.get_model().forward
        assert trainer.get_num_updates() == 1
        assert_same_bits(toys.parameters(trainer), before)
        assert all(p.grad is None or not p.grad.any() for p in trainer.get_model().parameters())
        for one in (trainer, twin):
            one.train_step(samples[4:6])
        assert_same_bits(toys.parameters(trainer), toys.parameters(twin))


def train_with_one_failing(rank: int, count: int, port: int, data: Path) -> dict[Any, Any]:
    """Run an update of each kind, then for each pass one in which the second worker fails in it.

    Each of these has another one after it.
    """
    init = toys.join_workers(data, toys.TRANSLATION, rank, count, port)
    found: dict[Any, Any] = {}
    for method, scope in SHARED:
        trainer = trainer_of(data, method, scope, *init)
        states = found[method, scope] = [toys.parameters(trainer)]
        for update in range(2 * PASSES[method] + 1):
            start = 8 * (update % 8) + 4 * rank
            group = [toys.sentences(trainer, range(s, s + 2)) for s in (start, start + 2)]
            number = (update + 1) // 2 if update % 2 and rank == 1 else 0  # 0: in none
            trainer.set_num_updates(min(1, update))
            moved = displacements(trainer) if (method, scope, number) == WATCHED else []
            toys.break_forward(trainer, number, OUT_OF_MEMORY)
            trainer.train_step(group)
            del trainer.get_model().forward
            states.append(toys.parameters(trainer))
            if moved:
                found["moved"] = list(moved)
    return found


@pytest.fixture(scope="module")
def workers(translation: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("out-of-memory")
    return run_workers(train_with_one_failing, 2, folder, translation)


@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", SHARED, ids=str)
def test_two_workers_go_on_together(workers: list[Any], kind: tuple[str, str]) -> None:
    one, two = (w[kind] for w in workers)
    assert len(one) == len(two) == 2 * PASSES[kind[0]] + 2
    for update in range(1, len(one)):
        assert_same_bits(one[update], two[update])
        assert all(torch.isfinite(v).all() for v in one[update].values())
        name = next(iter(one[update]))
        assert not torch.equal(one[update][name], one[update - 1][name]), "nothing was learnt"


@pytest.mark.multiprocess
def test_the_micro_batches_after_a_failed_one_keep_their_perturbation(workers: list[Any]) -> None:
    moved = workers[1]["moved"]
    assert moved == pytest.approx([0.0, 0.0, 0.05, 0.05], abs=1e-5)
