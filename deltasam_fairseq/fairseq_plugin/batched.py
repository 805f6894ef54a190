"""Per-instance perturbation of a fairseq model, all sentences of a micro-batch at once.

The core's engine sees every use of a parameter, whoever makes it. Two of
fairseq's are changed for the length of a pass. Attention hands the weights of
its four projections to one function of PyTorch; it calls the projections
themselves once it was told that heads may have been pruned, so that is what it
is told. And layer normalisation is apex's fused one where apex is installed, a
compiled function that nobody can look into; PyTorch's own takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from deltasam_fairseq.core.pass_state import PassState
from deltasam_fairseq.core.per_instance import Engine
from deltasam_fairseq.fairseq_plugin.samples import containers_copied
from deltasam_fairseq.fairseq_plugin.sentence_losses import Reader, SentenceLosses

Sample = dict[str, Any]


class BatchedResult(NamedTuple):
    """What one micro-batch saw.

    Args:
        loss: ``sum_i l_i(w + eps_i)``, detached.
        sample_size: The criterion's own.
        at_weights: The criterion's logging output at ``w``.
        moved: The same at ``w + eps_i``.
        norms: ``|grad l_i(w)|``, shape ``(N,)``, float64, without the loss scale.
        fallbacks: How many sentences were not perturbed: those whose gradient is
            zero or not finite, or whose perturbed loss is not finite.
        overflow: Whether the loss scale was too large; the gradient is then not
            finite, for fairseq to skip the update.
    """

    loss: Tensor
    sample_size: Any
    at_weights: dict[str, Any]
    moved: dict[str, Any]
    norms: Tensor
    fallbacks: int
    overflow: bool


def batched_per_instance(
    engine: Engine,
    model: Any,
    criterion: Any,
    reader: Reader,
    sample: Sample,
    *,
    rho: float,
    plain_model: nn.Module | None = None,
    loss_scale: float = 1.0,
    backward: Callable[[Tensor], Any] = torch.autograd.backward,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> BatchedResult:
    """Add ``sum_i grad l_i(w + eps_i)`` of a micro-batch to ``.grad``.

    Args:
        engine: The run's engine, made once of the unwrapped model and the run's
            :class:`~deltasam_fairseq.core.space.WeightSpace`.
        model: The model as the task calls it, perhaps wrapped for several workers.
        criterion: The criterion, unwrapped.
        reader: Its reader of per-sentence losses.
        sample: The micro-batch; it is not changed.
        rho: L2 norm of each sentence's perturbation, at least 0.
        plain_model: The unwrapped model, for the pass that gives no gradients to
            parameters; ``model`` when left out.
        loss_scale: What ``backward`` multiplies the loss with.
        backward: fairseq's ``optimizer.backward``, or autograd's.
        within: Makes the context of a forward pass, such as autocast.

    Returns:
        Losses, logging outputs and norms.

    Refusals:
        ``Unsupported`` if the model uses a parameter in a way that no layer rule
        covers. Nothing has changed then: the caller can run the loop.

    State:
        Adds to ``.grad``; random generators and buffers end where one pass at w
        would leave them, and both passes see the same dropout and LayerDrop.

    Cost:
        2 forward and 2 backward passes, the first of these without weight
        gradients.

    Collectives:
        None but those of the second backward pass of a wrapped model.
    """
    root = model if plain_model is None else plain_model
    start = PassState.capture(
        engine.space, [m for m in (root, criterion) if isinstance(m, nn.Module)]
    )
    seen: list[SentenceLosses] = []

    def losses_of(used: Any) -> Tensor:
        start.replay()
        with within():
            seen.append(reader(criterion, used, containers_copied(sample)))
        return seen[-1].losses

    try:
        with own_projections(root), own_norms(root):
            ascent = engine.ascend(lambda: losses_of(root), rho=rho, loss_scale=loss_scale)
            fine = torch.isfinite(ascent.losses)
            overflow = loss_scale != 1 and bool((~torch.isfinite(ascent.norms) & fine).any())
            at_weights = seen[-1].logging_output
            left = start.buffers.now()
            seen.clear()
            with ascent.perturbed():
                there = losses_of(model)
            lost = ~torch.isfinite(there.detach()) & fine
            if lost.any() and not overflow:
                ascent.leave_alone(lost)
                del there
                seen.clear()
                with ascent.perturbed():
                    there = losses_of(model)
    except BaseException:
        start.replay()
        raise
    loss = there.sum()
    backward(loss * math.inf if overflow else loss)
    left.replay()
    return BatchedResult(
        loss=loss.detach(),
        sample_size=seen[-1].sample_size,
        at_weights=at_weights,
        moved=seen[-1].logging_output,
        norms=ascent.norms,
        fallbacks=int((~ascent.usable).sum()),
        overflow=overflow,
    )


@contextmanager
def own_projections(model: nn.Module) -> Generator[None, None, None]:
    """Let attention call its projections as the modules that they are.

    The numbers are the same up to rounding, and so are the dropout's.

    Args:
        model: The model; its modules are as before after the block.

    Yields:
        Nothing.
    """
    changed = [
        module
        for module in model.modules()
        if isinstance(module, MultiheadAttention)
        and not module.skip_embed_dim_check
        and not getattr(module, "use_xformers", False)
    ]
    for module in changed:
        module.skip_embed_dim_check = True
    try:
        yield
    finally:
        for module in changed:
            module.skip_embed_dim_check = False


@contextmanager
def own_norms(model: nn.Module) -> Generator[None, None, None]:
    """Let apex's fused layer normalisation be computed by PyTorch's.

    The numbers are the same up to rounding.

    Args:
        model: The model; its modules are as before after the block.

    Yields:
        Nothing.
    """
    changed = [module for module in model.modules() if _is_fused(module)]
    for module in changed:
        module.forward = partial(_layer_norm, module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _is_fused(module: nn.Module) -> bool:
    return "forward" not in vars(module) and any(
        kind.__module__.partition(".")[0] == "apex" and kind.__name__ == "FusedLayerNorm"
        for kind in type(module).__mro__
    )


def _layer_norm(module: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)
