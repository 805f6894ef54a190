"""The batches of one update, which share its weights, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed

from deltasam_fairseq.core.estimators import LossesFunction
from deltasam_fairseq.core.graph import gradients_aside
from deltasam_fairseq.core.passes import Passes
from deltasam_fairseq.core.precision import wide
from deltasam_fairseq.core.workers import total

# One forward pass of the whole update, or of each of its batches.
LossesFunctions = LossesFunction | Sequence[LossesFunction]


class Batches:
    """The passes of each batch of an update, in order.

    The first pass of a batch starts from the random generators and buffers that the
    batch before it has left with its pass at w. A batch's :class:`Passes` are made when it is
    reached for the first time, so whoever iterates ends each batch with a pass at w
    and :meth:`Passes.leave`.

    Args:
        params: The parameters that are perturbed.
        losses_functions: One forward pass of the batch, or of each batch.
    """

    def __init__(self, params: Sequence[Tensor], losses_functions: LossesFunctions) -> None:
        several = [losses_functions] if callable(losses_functions) else list(losses_functions)
        if not several:
            raise ValueError("an update needs at least one batch, got an empty list of closures")
        self.params = params
        self._waiting: list[Callable[[], Passes]] = [
            partial(Passes, params, function) for function in several[::-1]
        ]
        self._met: list[Passes] = []

    @classmethod
    def of(cls, params: Sequence[Tensor], makers: Sequence[Callable[[], Any]]) -> Batches:
        """Take functions that make each batch's passes, at least one."""
        batches = cls(params, makers)
        batches._waiting = list(makers[::-1])
        return batches

    def __len__(self) -> int:
        return len(self._met) + len(self._waiting)

    def __iter__(self) -> Iterator[Passes]:
        yield from self._met
        while self._waiting:
            self._met.append(self._waiting.pop()())
            yield self._met[-1]

    @property
    def group(self) -> Any:
        """The workers that share the update, if there are several and one was met."""
        return next((p.group for p in self._met if p.group is not None), None)

    def everywhere(self, *numbers: float) -> list[float]:
        """Sum numbers over all workers.

        Args:
            *numbers: This worker's.

        Returns:
            Their sums.
        """
        if self.group is None:
            return list(numbers)
        return total(numbers, self.group, self.params[0].device)

    def divisor(self, reduction: str, sentences: float) -> float:
        """Return what a sum over this worker's sentences is divided by.

        Args:
            reduction: ``mean`` or ``sum``, over the sentences of all workers.
            sentences: How many they have together.

        Returns:
            The divisor. DistributedDataParallel divides the sum over workers by their number.
        """
        workers = 1 if self.group is None else distributed.get_world_size(self.group)
        return (sentences if reduction == "mean" else 1) / workers

    def rewind(self) -> None:
        """Put generators and buffers where the first batch found them."""
        for passes in reversed(self._met):
            passes.rewind()

    def let_workers_start_over(self) -> None:
        """Let all workers begin alike again, after they have run different passes."""
        for passes in self._met:
            for wrapper in passes.wrappers:
                # Otherwise those whose last pass was local would not take part when the next
                # one hands the first worker's buffers on.
                wrapper.require_forward_param_sync = True

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put the buffers, after a block, where the passes at w have left them.

        Yields:
            Nothing.
        """
        left = []
        try:
            yield
            left = [passes.left for passes in self._met]
        finally:
            for passes in reversed(self._met):
                passes.buffers.replay()
            for buffers in left:
                if buffers is not None:
                    buffers.replay()

    @contextmanager
    def local(self) -> Iterator[None]:
        """Keep the gradients of a block on this worker, of the batches met so far.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            for passes in self._met:
                stack.enter_context(passes.local())
            yield


class Withheld:
    """Gradients that wait for the other batches of their update."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}

    def backward(self, passes: Passes, loss: Tensor) -> None:
        """Differentiate a scalar; every ``.grad`` stays as it is.

        Args:
            passes: The batch that it is of.
            loss: The scalar; its graph is used up.
        """
        params = passes.differentiated(loss)
        with gradients_aside(params):
            for param in params:
                if id(param) in self._sums:
                    param.grad = self._sums[id(param)][1]
            torch.autograd.backward(loss)
            self._sums.update({id(p): (p, p.grad) for p in params if p.grad is not None})

    @torch.no_grad()
    def release(self, factor: float) -> None:
        """Add the sums of the gradients to ``.grad``.

        Args:
            factor: Factor on them.
        """
        for param, gradient in self._sums.values():
            gradient.mul_(factor)
            if param.grad is None:
                param.grad = gradient
            else:
                param.grad.add_(gradient)
        self._sums.clear()


def add_gradients(
    batches: Batches,
    score: Callable[[Passes], Tensor],
    *,
    reduction: str,
    sentences: float | None = None,
    loss_scale: float = 1.0,
    accepts: Callable[[Tensor], bool] = lambda _: True,
) -> tuple[Tensor, bool]:
    """Add the gradient of the reduced losses of all batches to ``.grad``.

    The backward pass of the last batch is the one that DistributedDataParallel reduces.

    Args:
        batches: The update.
        score: The losses of one batch, with their graph.
        reduction: ``mean`` or ``sum`` over sentences.
        sentences: How many all batches of all workers have; counted if left out.
        loss_scale: Factor on the gradient.
        accepts: Asked about all losses before anything is added to ``.grad``.

    Returns:
        The losses of all batches, detached, and whether they were accepted.
    """
    withheld, found, parts = Withheld(), [], 0.0
    for number, passes in enumerate(batches, start=1):
        if number == len(batches):
            last = score(passes)
            found.append(last.detach())
            break
        with passes.local():
            losses = score(passes)
            found.append(losses.detach())
            # Divided now, or half precision would overflow; by what, is known at the end.
            parts = parts or batches.divisor(reduction, sentences or losses.numel())
            withheld.backward(passes, wide(losses).sum() / (parts / loss_scale))
            del losses
    together = joined(found)
    if not accepts(together):
        if batches.group is not None:
            # DistributedDataParallel waits for this backward pass, and would take the next
            # one for it, which may be of a batch whose gradients stay on the worker.
            with gradients_aside(passes.differentiated(last)):
                torch.autograd.backward(last.sum() * 0)
        return together, False
    if sentences is None:
        (sentences,) = batches.everywhere(together.numel())
    divisor = batches.divisor(reduction, sentences)
    if parts:
        withheld.release(parts / divisor)
    torch.autograd.backward(wide(last).sum() / (divisor / loss_scale))
    return together, True


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return what the batches of an update have found as if it were one batch.

    Args:
        parts: One tensor of each, shape ``(N_k, …)``, or one scalar.

    Returns:
        The tensor of all.
    """
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def checked_batches(params: Sequence[Tensor], losses_functions: LossesFunctions) -> Batches:
    """Return batches whose losses functions have to return a vector that is not empty.

    Args:
        params: As for :class:`Batches`.
        losses_functions: As for :class:`Batches`.

    Returns:
        The batches.
    """
    several = [losses_functions] if callable(losses_functions) else losses_functions
    return Batches(params, [partial(_checked, function) for function in several])


def factor_of(loss_scale: float | None) -> float:
    """Return a loss scale as a factor, 1 if there is none."""
    return 1.0 if loss_scale is None else loss_scale


def checked_losses(losses: Any, *, least: int = 1) -> Tensor:
    """Return what a losses function gave if it is a vector that can be differentiated.

    Args:
        losses: What it gave.
        least: Of how many sentences at least.

    Returns:
        The losses.

    Raises:
        ValueError: If it is something else, or has no graph where gradients are enabled.
    """
    if not isinstance(losses, Tensor) or losses.dim() != 1 or len(losses) < least:
        is_tensor = isinstance(losses, Tensor)
        got = f"shape {tuple(losses.shape)}" if is_tensor else type(losses).__name__
        raise ValueError(
            "the losses function must return one loss per sentence, a vector of shape (N,)"
            f"{' with N > 0' if least else ''}; got {got} (call it with reduction='none')"
        )
    if len(losses) and torch.is_grad_enabled() and not losses.requires_grad:
        raise ValueError(
            "the losses have no gradient: either nothing that they depend on has "
            "requires_grad=True, or they were detached or computed under torch.no_grad"
        )
    return losses


def _checked(losses_function: LossesFunction) -> Tensor:
    return checked_losses(losses_function())
