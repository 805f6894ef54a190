"""What the batched engine needs of fairseq for a pass.

The engine sees every use of a parameter, whoever makes it. Two of fairseq's are changed for the
length of a pass. Attention hands the weights of its four projections to one function of PyTorch;
it calls the projections themselves once it was told that heads may have been pruned, so that is
what it is told. And layer normalisation is apex's fused one where apex is installed, a compiled
function that nobody can look into; PyTorch's own takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from fairseq.modules import MultiheadAttention
from fairseq.optim.amp_optimizer import AMPOptimizer
from torch import Tensor, nn

from deltasam_fairseq.fairseq_plugin.criterions.readers import (
    Reader,
    SentenceLosses,
    reader_for,
)
from deltasam_fairseq.fairseq_plugin.passes import Step, is_plain
from deltasam_fairseq.fairseq_plugin.sharpness.samples import Sample, containers_copied
from deltasam_fairseq.per_instance import Ascent, Engine, Unsupported
from deltasam_fairseq.registry import UnknownName


def within_of(optimizer: Any, *, cuda: bool) -> Callable[[], AbstractContextManager[Any]]:
    """Return what makes the context of a forward pass, as ``FairseqTask.train_step`` has it.

    Args:
        optimizer: fairseq's outermost optimizer.
        cuda: Whether the model computes on a GPU.

    Returns:
        CUDA's autocast with ``--amp``; on a CPU that is nothing.
    """
    autocasts = isinstance(optimizer, AMPOptimizer) and cuda
    return partial(torch.autocast, "cuda") if autocasts else nullcontext


def reader_if_batched(step: Step, criterion: Any) -> Reader:
    """Check what can be told of the batched engine before there is a batch.

    Args:
        step: What runs a pass, such as ``task.train_step`` of the task object.
        criterion: The criterion, unwrapped.

    Returns:
        The criterion's reader of per-sentence losses.

    Raises:
        Unsupported: If the task's step is not fairseq's own, or the criterion's sentences have
            no losses that are known, depend on each other or are scored in passes of their own.
    """
    if not is_plain(step):
        name = getattr(step, "__qualname__", repr(step))
        raise Unsupported(f"the task's train_step is not fairseq's own, but {name}")
    if getattr(criterion, "dependence", ""):
        raise Unsupported(f"sentences depend on each other: {criterion.dependence}")
    if getattr(criterion, "unbatched", ""):
        raise Unsupported(criterion.unbatched)
    try:
        return reader_for(criterion)
    except UnknownName as error:
        raise Unsupported(str(error)) from error


def first_pass(
    engine: Engine,
    step: Step,
    model: Any,
    criterion: Any,
    sample: Sample,
    *,
    optimizer: Any,
    update_num: int,
    cuda: bool,
    loss_scale: float,
) -> tuple[Ascent, SentenceLosses]:
    """Run the engine's first pass alone, which finds the norms and moves nothing.

    Args:
        engine: Of the model.
        step: What runs a pass; it has to be fairseq's own.
        model: The model, not wrapped.
        criterion: The criterion, unwrapped.
        sample: The micro-batch; it is not changed.
        optimizer: fairseq's outermost optimizer.
        update_num: Number of updates before this one.
        cuda: Whether the model computes on a GPU.
        loss_scale: What the optimizer multiplies losses with.

    Returns:
        What was found, and what the criterion's reader returned.

    Refusals:
        ``Unsupported`` if the norms would not be exact; generators may have moved.
    """
    reader = reader_if_batched(step, criterion)
    within = within_of(optimizer, cuda=cuda)
    model.train()
    model.set_num_updates(update_num)
    seen: list[SentenceLosses] = []

    def losses() -> Tensor:
        with within():
            seen.append(reader(criterion, model, containers_copied(sample)))
        return seen[-1].losses

    with own_projections(model), own_norms(model):
        ascent = engine.ascend(losses, rho=0.0, loss_scale=loss_scale)
    return ascent, seen[-1]


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
    changed = [
        module
        for module in model.modules()
        if is_fused_norm(module) and "forward" not in vars(module)
    ]
    for module in changed:
        module.forward = partial(_layer_norm, module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def is_fused_norm(module: nn.Module) -> bool:
    """Tell whether a module is apex's fused layer normalisation, or fairseq's class of it."""
    return any(
        kind.__module__.partition(".")[0] == "apex" and kind.__name__ == "FusedLayerNorm"
        for kind in type(module).__mro__
    )


def _layer_norm(module: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)
