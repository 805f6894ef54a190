"""fairseq's precision settings, as tests run them."""

from __future__ import annotations

from typing import Any

MODES: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "fp16": ("--fp16", "--fp16-no-flatten-grads"),
    "fp16, flat": ("--fp16",),
    "memory-efficient fp16": ("--memory-efficient-fp16",),
    "bf16": ("--bf16",),
    "memory-efficient bf16": ("--memory-efficient-bf16",),
    "amp": ("--amp",),
}

WITH_MASTERS = ("fp16", "fp16, flat", "bf16")


def displacement(trainer: Any) -> float:
    """Return how far Adam has moved the weights, by the norm of its first moments."""
    states = trainer.optimizer.optimizer.state.values()
    return float(sum(state["exp_avg"].float().norm() for state in states))
