"""Several workers: passes whose gradients stay local, and one reduction of our own.

The ascent never uses the reduction that fairseq's distributed wrappers attach
to backward passes. Its gradients stay local (``without_sync``) and, in scope
``update``, are added up once over all workers (``add_up``), the same way under
every wrapper.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from fairseq.distributed import utils as distributed
from torch import Tensor

# Gradients are added up in pieces of at most this many elements (256 MiB of
# float32), so that the reduction never needs a whole copy of the model.
BUCKET_ELEMENTS = 2**26


@contextmanager
def without_sync(*models: Any) -> Generator[None, None, None]:
    """Keep the gradients of a block's backward passes on this worker.

    Args:
        *models: The model and the criterion, wrapped for several workers or not.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        for model in models:
            wrapper = _accumulating(model)
            if wrapper is not None:
                # Its own no_sync does not put the flag back after an exception.
                stack.callback(setattr, wrapper, "accumulate_grads", wrapper.accumulate_grads)
                wrapper.accumulate_grads = True
            elif hasattr(model, "no_sync"):
                stack.enter_context(model.no_sync())
        yield


def synchronise(*models: Any) -> None:
    """Let the next backward pass be reduced, whatever an exception left behind.

    fairseq's legacy wrapper stays in its ``no_sync`` after an out-of-memory in
    a micro-batch that is not the last one: this worker would leave the others
    alone in the reduction.

    Args:
        *models: The model and the criterion, wrapped for several workers or not.
    """
    for model in models:
        wrapper = _accumulating(model)
        if wrapper is not None:
            wrapper.accumulate_grads = False


def is_out_of_memory(error: BaseException) -> bool:
    """Tell an error that fairseq's trainer recovers from, by its own criterion."""
    return isinstance(error, RuntimeError) and "out of memory" in str(error)


@contextmanager
def memory_needed() -> Generator[None, None, None]:
    """Make an out-of-memory of a block final.

    fairseq would skip the batch and go on to its next collective, while the
    other workers wait in this one.

    Yields:
        Nothing.

    Raises:
        RuntimeError: Instead of the out-of-memory; the message says what to do.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        size = BUCKET_ELEMENTS * 4 // 2**20
        raise RuntimeError(
            "this worker has no memory left to add up the ascent's gradient, which takes up to "
            f"{size} MiB beside it, and it cannot skip the batch, because the others wait for it. "
            "Take smaller micro-batches (--max-tokens, with a larger --update-freq), or "
            "--sam-scope micro; training goes on from the last checkpoint"
        ) from error


def add_up(
    tensors: Sequence[Tensor],
    numbers: Sequence[float],
    group: Any,
    *,
    factor: float = 1.0,
    divisor: Callable[[list[float]], float] = lambda _: 1.0,
) -> list[float]:
    """Sum tensors and a few numbers over all workers, in place.

    The sums are taken in float32 (float64 for float64): in half precision the
    numbers would be rounded, and the tensors might overflow.

    Args:
        tensors: The same shapes and order on every worker, one dtype.
        numbers: The same count on every worker; they travel with the first bucket.
        group: fairseq's process group.
        factor: What this worker's tensors are multiplied by before they are summed.
        divisor: What the summed tensors are divided by, a function of the
            summed numbers.

    Returns:
        The summed numbers.

    Raises:
        RuntimeError: If the workers cannot reach each other any more.

    Collectives:
        One all-reduce for every :data:`BUCKET_ELEMENTS` elements or part of it.
    """
    summed: list[float] = []
    extra = list(numbers)
    share = 1.0
    for bucket in _buckets(tensors):
        kind = torch.promote_types(bucket[0].dtype, torch.float32)
        parts = [t.reshape(-1).to(kind) for t in bucket]
        flat = torch.cat([*parts, parts[0].new_tensor(extra)])
        flat[: flat.numel() - len(extra)].mul_(factor)
        try:
            distributed.all_reduce(flat, group=group)
        except RuntimeError as error:
            raise RuntimeError(
                "the workers could not add up the ascent's gradient: one of them has stopped, or "
                "the network is gone. Nothing of this update was saved; start all workers "
                f"again, and training goes on from the last checkpoint. ({error})"
            ) from error
        if extra:
            summed = flat[-len(extra) :].tolist()
            share, extra = divisor(summed), []
        offset = 0
        for tensor in bucket:
            part = flat[offset : offset + tensor.numel()]
            tensor.copy_(part.div_(share).view_as(tensor))
            offset += tensor.numel()
    return summed


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def _accumulating(model: Any) -> Any:
    """Find fairseq's legacy wrapper inside the proxies around it."""
    while isinstance(model, torch.nn.Module):
        if "accumulate_grads" in vars(model):
            return model
        model = model._modules.get("module")
    return None
