"""Several workers: passes whose gradients stay local, and one reduction of our own.

The ascent never uses the reduction that fairseq's distributed wrappers attach
to backward passes. Its gradients stay local (``without_sync``) and, in scope
``update``, are added up once over all workers (``add_up``), the same way under
every wrapper.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
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


def add_up(tensors: Sequence[Tensor], numbers: Sequence[float], group: Any) -> list[float]:
    """Sum tensors and a few numbers over all workers, in place.

    Args:
        tensors: The same shapes and order on every worker, one dtype.
        numbers: The same count on every worker; they travel in the tensors'
            dtype, with the first bucket.
        group: fairseq's process group.

    Returns:
        The summed numbers.

    Collectives:
        One all-reduce for every :data:`BUCKET_ELEMENTS` elements or part of it.
    """
    summed: list[float] = []
    extra = tensors[0].new_tensor(list(numbers)) if numbers else None
    for bucket in _buckets(tensors):
        parts = [t.reshape(-1) for t in bucket]
        if extra is not None:
            parts.append(extra)
        flat = torch.cat(parts)
        distributed.all_reduce(flat, group=group)
        offset = 0
        for tensor in bucket:
            tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
            offset += tensor.numel()
        if extra is not None:
            summed, extra = flat[offset:].tolist(), None
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
