"""A stand-in for ``task.train_step`` on the task object, as another plugin puts one there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import fairseq_toys as toys

EXACT = ("--dropout", "0", "--sam-inner", "sgd", "--lr", "0.05", "--sam-scope", "micro")
METHODS = {
    "sam": ("--sam-method", "sam"),
    "delta_sam": ("--sam-method", "delta_sam"),
    "per_instance": ("--sam-method", "per_instance"),
    "the loop": ("--sam-method", "per_instance", "--sam-per-instance-engine", "loop"),
}


def moved(data: Path, dtype: torch.dtype, method: str, factor: float | None) -> tuple[Any, int]:
    """Train one update, with a stand-in that multiplies the loss if there is a factor."""
    flags = (*toys.PRECISE, *EXACT, *METHODS[method])
    trainer = toys.make_trainer(data, *flags, dtype=dtype)
    calls: list[int] = []

    def step(  # noqa: PLR0917  (as the trainer calls it)
        sample: Any,
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
    ) -> Any:
        calls.append(1)
        model.train()
        loss, size, logging_output = criterion(model, sample)
        optimizer.backward(loss * (0 if ignore_grad else factor))
        return loss * factor, size, logging_output

    if factor is not None:
        trainer.task.train_step = step
    before = toys.parameters(trainer)
    trainer.train_step(toys.batches(trainer)[:1])
    assert trainer.get_num_updates() == 1
    if factor is not None:
        assert trainer.task.train_step is step
    return {n: p - before[n] for n, p in toys.parameters(trainer).items()}, len(calls)


@pytest.mark.parametrize("method", METHODS)
def test_a_stand_in_runs_every_pass(translation: Path, float64: torch.dtype, method: str) -> None:
    plain, _ = moved(translation, float64, method, None)
    ours, calls = moved(translation, float64, method, 3.0)
    assert calls >= 2
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], 3 * value, rtol=1e-6, atol=1e-9)


def test_batched_is_refused_beside_a_stand_in_at_start_up(translation: Path) -> None:
    flags = ("--sam-method", "per_instance", "--sam-per-instance-engine", "batched")
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
    own = trainer.task.train_step

    def logged(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    trainer.task.train_step = logged
    with pytest.raises(ValueError, match=r"not fairseq's own, but .*logged; or pass auto"):
        trainer._build_optimizer()
    # The method itself on the object is no stand-in.
    trainer.task.train_step = own
    trainer._build_optimizer()
