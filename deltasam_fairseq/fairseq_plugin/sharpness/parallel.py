"""Several workers: passes whose gradients stay local, and one reduction of our own.

The ascent never uses the reduction that fairseq's distributed wrappers attach
to backward passes. Its gradients stay local (``without_sync``) and, in scope
``update``, are added up once over all workers, the same way under every wrapper
(:func:`~deltasam_fairseq.core.workers.add_up`).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from deltasam_fairseq.core.workers import BUCKET_ELEMENTS


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


def _accumulating(model: Any) -> Any:
    """Find fairseq's legacy wrapper inside the proxies around it."""
    while isinstance(model, torch.nn.Module):
        if "accumulate_grads" in vars(model):
            return model
        model = model._modules.get("module")
    return None
