"""The gradient that an update gives to the inner optimizer, whatever the precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support import fairseq_toys as toys


def first_gradient(
    data: Path, *flags: str, start: Sequence[Tensor] | None = None
) -> tuple[list[Tensor], Tensor, float]:
    """Run one update of two micro-batches.

    Args:
        data: The data folder.
        *flags: What the run is.
        start: Weights to start from; the model's own when left out.

    Returns:
        The weights that it started from, in float32; the direction of the
        gradient, a vector of norm one in float64; and the norm that fairseq logs.
    """
    trainer = toys.make_trainer(data, *toys.TRANSLATION, "--dropout", "0", *flags)
    params = list(trainer.get_model().parameters())
    for param, value in zip(params, start or params, strict=True):
        param.data.copy_(value)
    begun = [p.detach().float().clone() for p in params]
    found: list[Tensor] = []
    clip = trainer.clip_grad_norm

    def look(norm: float) -> Any:
        # fairseq 0.12.2 has parameters that training never uses.
        used = [p.grad for p in params if p.grad is not None]
        found.append(torch.cat([gradient.double().flatten() for gradient in used]))
        return clip(norm)

    trainer.clip_grad_norm = look
    (log,) = toys.updates(trainer, [toys.batches(trainer)[:2]])
    (gradient,) = found
    return begun, gradient / gradient.norm(), log["gnorm"]
