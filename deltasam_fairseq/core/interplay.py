"""What else may step a :class:`DeltaSAM`: a GradScaler, and an Accelerator that accumulates."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from deltasam_fairseq.core.vectors import global_norm

# The latter before torch 2.3.
GradScaler: Any = getattr(torch.amp, "GradScaler", None) or torch.cuda.amp.GradScaler


def scale_of(scaler: Any, params: list[Tensor]) -> float | None:
    """Return the factor that a GradScaler wants on the losses of a step.

    Args:
        scaler: The scaler, if there is one.
        params: The parameters that train.

    Returns:
        Its scale; ``None`` if there is no scaler, or one that is disabled.
    """
    if scaler is None or not scaler.is_enabled():
        return None
    scaler.scale(params[0].new_zeros(()))  # it has no scale before it has scaled something
    return float(scaler.get_scale())


@contextmanager
def gradients_scaled(params: list[Tensor], scale: float | None) -> Iterator[None]:
    """Scale the gradients that are there, which are unscaled with those of the passes in a block.

    Args:
        params: The parameters that train.
        scale: The factor, if there is one. A block that fails takes it back.

    Yields:
        Nothing.
    """
    factor = 1.0 if scale is None else scale
    there = [p.grad for p in params if p.grad is not None and factor != 1]
    for gradient in there:
        gradient.mul_(factor)
    try:
        yield
    except BaseException:
        for gradient in there:
            gradient.div_(factor)
        raise


def unscale(scaler: Any, inner: Optimizer, params: list[Tensor], *, overflow: bool) -> bool:
    """Unscale the gradients of a step, and find out whether they can be used.

    All workers find the same: they share the overflow of an ascent, and the gradient.

    Args:
        scaler: The scaler, enabled.
        inner: The optimizer that uses the gradients.
        params: Its parameters that train.
        overflow: Whether a gradient of the ascent was not finite.

    Returns:
        Whether a gradient was not finite. The scaler has seen it: it skips the update.
    """
    if overflow:
        # So is the scaler told: its own ways of counting infinities are private.
        params[0].grad = torch.full_like(params[0], torch.inf)
    scaler.unscale_(inner)
    norm = global_norm([p.grad for p in params if p.grad is not None])
    return not bool(torch.isfinite(norm))


def refuse_to_be_stepped_by_scalers(kind: type[Optimizer]) -> None:
    """Let a GradScaler that is to step an optimizer of some kind say that this cannot work.

    Args:
        kind: The class.
    """
    # It asks the optimizer for nothing before it fails in an assertion about itself.
    step = GradScaler.step

    @functools.wraps(step)
    def refusing(self: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if isinstance(optimizer, kind) and self.is_enabled():
            raise TypeError(
                "a GradScaler cannot step a DeltaSAM: it would have to unscale the passes inside "
                "the step. Make it DeltaSAM(…, scaler=scaler) and call optimizer.step(closure) "
                "instead of scaler.step and scaler.update; or use bfloat16 autocast or float32 "
                "without a scaler, or fairseq's --fp16"
            )
        return step(self, optimizer, *args, **kwargs)

    GradScaler.step = refusing


def refuse_lost_batches() -> None:
    """Refuse the last batch of an update of which an Accelerator has kept back the others.

    An optimizer that an Accelerator has prepared is not stepped while it accumulates: the
    closures of all batches but the last would never be called, and nothing would say so.

    Raises:
        RuntimeError: If an Accelerator accumulates.
    """
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is None:
        return
    batches = accelerate.GradientState().num_steps
    if batches > 1:
        raise RuntimeError(
            f"an Accelerator with gradient_accumulation_steps={batches} would drop all batches of "
            "an update but the last: a prepared DeltaSAM is not stepped while it accumulates. "
            "Do not prepare the optimizer, do not use accelerator.accumulate, and hand all "
            "batches of an update to one optimizer.step([closure, closure, …]); a list with one "
            "closure is an update of one batch"
        )
