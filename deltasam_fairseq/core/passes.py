"""The passes of one batch: alike in everything but the weights.

All passes see the same dropout, LayerDrop and buffers, and leave the buffers
where one pass at w leaves them. The ascent's gradient reaches the parameters
that are perturbed and nothing else: no other leaf of the graph and, under
DistributedDataParallel, no other worker. Modules are met as they are called,
because a closure does not say what it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from deltasam_fairseq.core.graph import gradients_aside, leaves, take_gradients
from deltasam_fairseq.core.pass_state import Buffers, PassState
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.core.vectors import unique
from deltasam_fairseq.core.workers import total


class Passes:
    """One batch, scored as often as a step needs it.

    Args:
        params: The parameters that are perturbed.
        losses_function: One forward pass of the batch.
        buffers: What the buffers of the passes start from, if other passes of
            the update share it.

    Attributes:
        buffers: The buffers of all modules that were met, as the first pass saw them.
        group: The workers that share the step: the process group of the
            DistributedDataParallel that was met, if it has more than one worker.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        losses_function: Callable[[], Tensor],
        *,
        buffers: Buffers | None = None,
    ) -> None:
        self.params = params
        self.group: Any = None
        self.buffers = Buffers() if buffers is None else buffers
        self._start = PassState(RandomState.capture(params), self.buffers)
        self._left: Buffers | None = None
        self._losses_function = losses_function
        self._local: ExitStack | None = None

    def __call__(self) -> Tensor:
        """Run one forward pass of the batch.

        Returns:
            What the losses function returns, with its graph if gradients are enabled.
        """
        self.rewind()
        handle = register_module_forward_pre_hook(self._meet)
        try:
            return self._losses_function()
        finally:
            handle.remove()

    def rewind(self) -> None:
        """Put generators and buffers where the first pass found them."""
        self._start.replay()

    def ascend(self, loss: Tensor) -> list[Tensor | None]:
        """Differentiate by the perturbed parameters; every ``.grad`` stays as it is.

        Args:
            loss: A scalar of a pass; its graph is used up.

        Returns:
            One gradient per parameter, ``None`` where the loss does not depend on it.
        """
        # Of the modules as well as of the graph, which does not show the parameters
        # of layers whose activations are checkpointed.
        called = (p for m in self.buffers.modules for p in m._parameters.values() if p is not None)
        with gradients_aside(unique([*self.params, *called, *leaves(loss)])):
            torch.autograd.backward(loss)
            return take_gradients(self.params)

    def reached(self) -> list[Tensor]:
        """List the parameters that receive a gradient from a pass of any worker."""
        with self.restored(), self.local():
            loss = self().sum()
            gradients = self.ascend(loss) if loss.requires_grad else [None] * len(self.params)
        marks = [float(gradient is not None) for gradient in gradients]
        if self.group is not None:
            marks = total(marks, self.group, self.params[0].device)
        return [param for param, mark in zip(self.params, marks, strict=True) if mark]

    @contextmanager
    def local(self) -> Iterator[None]:
        """Keep the gradients of a block's passes on this worker.

        Yields:
            Nothing.
        """
        outer = self._local
        with ExitStack() as stack:
            stack.callback(setattr, self, "_local", outer)
            self._local = stack
            yield

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put the buffers, after a block, where the pass before ``leave`` left them.

        Yields:
            Nothing.
        """
        try:
            yield
        except BaseException:
            self.buffers.replay()
            raise
        (self._left or self.buffers).replay()

    def leave(self) -> None:
        """Let the update leave the buffers as they are now, after a pass at w."""
        self._left = self.buffers.now()

    def _meet(self, module: nn.Module, _: Any) -> None:
        if isinstance(module, DistributedDataParallel):
            # The first worker's buffers are on their way to the others in its call:
            # they are read when the module inside is called.
            if distributed.get_world_size(module.process_group) > 1:
                self.group = module.process_group
            if self._local is not None:
                self._local.enter_context(module.no_sync())
        elif type(module).__name__ == "FullyShardedDataParallel":
            raise ValueError(
                "FullyShardedDataParallel is not supported: a worker holds a part of the weights, "
                "and a perturbation covers all of them; use DistributedDataParallel"
            )
        else:
            self.buffers.include(module)
