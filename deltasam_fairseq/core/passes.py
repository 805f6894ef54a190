"""The passes of one batch: alike in everything but the weights.

All passes see the same dropout, LayerDrop and buffers, and leave the buffers
where one pass at w leaves them. The ascent's gradient reaches the parameters
that are perturbed and nothing else: no other leaf of the graph and, under
DistributedDataParallel, no other worker. Modules are met as they are called,
because a closure does not say what it uses; where it calls methods instead, it
can say so by :func:`meet`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

try:
    from torch.compiler import is_compiling
except ImportError:  # before torch 2.3
    from torch._dynamo import is_compiling

from deltasam_fairseq.core.graph import gradients_aside, leaves, take_gradients
from deltasam_fairseq.core.pass_state import Buffers, PassState
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.core.vectors import unique
from deltasam_fairseq.core.workers import total

# The passes that are running in this thread: several where a closure takes steps itself.
_running: ContextVar[tuple[Passes, ...]] = ContextVar("running", default=())


def meet(module: nn.Module) -> None:
    """Tell the passes that are running that they use a module, before it is used.

    A module that is called tells so by itself, for what is inside it, too. A closure
    tells of a module whose methods it calls (``model.loss(x)``), and of modules that a
    compiled function of its calls, if they have buffers that a pass changes.

    Args:
        module: The module.

    Example:
        >>> model = torch.nn.BatchNorm1d(1)
        >>> def closure():
        ...     meet(model)
        ...     return model.forward(torch.tensor([[1.0], [3.0]]))[:, 0].square()
        >>> _ = Passes(list(model.parameters()), closure)()
    """
    for passes in _running.get():
        passes.include(module, whole=True)


def _meet_and_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    # The compiler traces this as a part of the model: it may read nothing that changes.
    # Before torch 2.5 it also runs modules on tensors without values, which is to be left alone.
    if not is_compiling() and torch._guards.TracingContext.try_get() is None:
        for passes in _running.get():
            passes.include(module, whole=is_compiled(module))
    return _call(module, *args, **kwargs)


_call = nn.Module.__call__
_entered = 0
_lock = Lock()


def is_compiled(module: nn.Module) -> bool:
    """Tell whether a module runs without calling the modules inside it."""
    return (
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
    )


@contextmanager
def _running_in(passes: Passes) -> Iterator[None]:
    # Not by a global hook: that is a part of what the compiler compiles, which would be
    # compiled anew for every pass, and does not see the outermost module of what it is.
    global _call, _entered  # noqa: PLW0603
    token = _running.set((*_running.get(), passes))
    with _lock:
        if not _entered:
            _call, nn.Module.__call__ = nn.Module.__call__, _meet_and_call  # type: ignore[method-assign]
        _entered += 1
    try:
        yield
    finally:
        _running.reset(token)
        with _lock:
            _entered -= 1
            if not _entered:
                nn.Module.__call__ = _call  # type: ignore[method-assign]


class Passes:
    """One batch, scored as often as a step needs it.

    Args:
        params: The parameters that are perturbed.
        losses_function: One forward pass of the batch.
        like: Passes of the same update, with the same modules, buffers and workers.

    Attributes:
        params: The parameters.
        losses_function: One forward pass, which starts from wherever things are.
        buffers: The buffers of all modules that were met, as the first pass saw them.
        left: The buffers where the update leaves them, once a pass at w has said so.
        wrappers: What was met of those that share gradients with other workers.
        group: The workers that share the step: the process group of the
            DistributedDataParallel that was met, if it has more than one worker.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        losses_function: Callable[[], Tensor],
        *,
        like: Passes | None = None,
    ) -> None:
        self.params = params
        self.group: Any = like.group if like else None
        self.buffers: Buffers = like.buffers if like else Buffers()
        self.wrappers: list[DistributedDataParallel] = like.wrappers if like else []
        self._start = PassState(RandomState.capture(params), self.buffers)
        self.left: Buffers | None = None
        self.losses_function = losses_function
        self._local: ExitStack | None = None

    def __call__(self) -> Tensor:
        """Run one forward pass of the batch.

        Returns:
            What the losses function returns, with its graph if gradients are enabled.
        """
        self.rewind()
        for wrapper in self.wrappers:
            self._stay_local(wrapper)
        with _running_in(self):
            return self.losses_function()

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
        with gradients_aside(self.differentiated(loss)):
            torch.autograd.backward(loss)
            return take_gradients(self.params)

    def differentiated(self, loss: Tensor) -> list[Tensor]:
        """List all that a backward pass gives a gradient to, and the perturbed parameters.

        Args:
            loss: A tensor of a pass; its graph is kept.

        Returns:
            Each once.
        """
        # Of the modules as well as of the graph, which does not show the parameters
        # of layers whose activations are checkpointed.
        called = (p for m in self.buffers.modules for p in m._parameters.values() if p is not None)
        return unique([*self.params, *called, *leaves(loss)])

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
        left = None
        try:
            yield
            left = self.left
        finally:
            # Of modules that were met after ``leave``, there is nothing in what it left.
            self.buffers.replay()
            if left is not None:
                left.replay()

    def leave(self) -> None:
        """Let the update leave the buffers as they are now, after a pass at w."""
        self.left = self.buffers.now()

    def include(self, module: nn.Module, *, whole: bool) -> None:
        """Borrow the buffers of a module, and keep its gradients local if that is asked for.

        Args:
            module: The module, before a pass has changed its buffers.
            whole: Whether nothing inside a wrapper will be met by itself.

        Raises:
            ValueError: If parameters are sharded, or a wrapper's graph is static.
        """
        # The first worker's buffers are on their way to the others in a wrapper's call:
        # they are read when the module inside is called, if it is.
        if isinstance(module, DistributedDataParallel) and not whole:
            self._join(module)
        elif module not in self.buffers:
            later: set[nn.Module] = set()
            for part in module.modules():
                if isinstance(part, DistributedDataParallel):
                    self._join(part)
                    later.update(() if whole else part.modules())
                elif type(part).__name__ == "FullyShardedDataParallel":
                    raise ValueError(
                        "FullyShardedDataParallel is not supported: a worker holds a part of the "
                        "weights, and a perturbation covers all of them; use "
                        "DistributedDataParallel"
                    )
            for part in module.modules():
                if part not in later:
                    self.buffers.hold(part)

    def _join(self, wrapper: DistributedDataParallel) -> None:
        if wrapper not in self.wrappers:
            self.wrappers.append(wrapper)
            if distributed.get_world_size(wrapper.process_group) > 1:
                self.group = wrapper.process_group
            self._stay_local(wrapper)

    def _stay_local(self, wrapper: DistributedDataParallel) -> None:
        if self._local is not None:
            if wrapper.static_graph:
                raise ValueError(
                    "DistributedDataParallel with static_graph=True has to reduce the gradients "
                    "of its first backward pass, but that of an ascent belongs to this worker "
                    "alone; use static_graph=False"
                )
            self._local.enter_context(wrapper.no_sync())
