"""Two views of a sentence of which the second alone is perturbed (section 5.3 of the paper).

A perturbation of the weights holds for every pass of a step. A criterion that compares two
passes of one model, as Mirror-BERT's does, may keep one of them out: in a block of
:func:`unperturbed` the model computes with the weights from before the move, connected to the
graph, so that its gradient reaches the parameters like that of the other pass::

    with unperturbed(model):
        first = encode(first_views)  # at w, and a constant while eps is searched for
    second = encode(second_views)  # at w + eps

ε is the worst case for the second pass, so the gradient that gives its direction is taken
through the second pass alone: during an ascent the first one is a constant.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.core.perturb import values_before

_ascending: ContextVar[bool] = ContextVar("ascending", default=False)


class _ValueBefore(torch.autograd.Function):
    """A moved parameter's value before the move; the gradient goes to the parameter."""

    @staticmethod
    def forward(ctx: Any, moved: Tensor, before: Tensor) -> Tensor:  # noqa: D102
        del ctx, moved
        return before.view_as(before)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: D102
        del ctx
        return gradient, None


@contextmanager
def ascending() -> Generator[None, None, None]:
    """Mark the passes whose gradient gives the direction of a perturbation.

    Yields:
        Nothing.
    """
    token = _ascending.set(True)
    try:
        yield
    finally:
        _ascending.reset(token)


@contextmanager
def unperturbed(model: Any) -> Generator[None, None, None]:
    """Let a model compute with the weights from before a perturbation during a block.

    Args:
        model: The model, perhaps wrapped for several workers. Its parameters stay where they
            are; stand-ins take their places in its modules.

    Yields:
        Nothing.

    State:
        The modules have their parameters again afterwards, also after an exception. The graph
        of the block keeps the values until its backward pass; these belong to the record that
        puts the weights back.
    """
    before = values_before()
    stand_ins: dict[int, Tensor] = {}
    replaced = []
    try:
        for module in model.modules() if before else ():
            held = module._parameters
            for name, param in list(held.items()):
                if id(param) in before:
                    if id(param) not in stand_ins:
                        value: Any = _ValueBefore.apply(param, before[id(param)])  # type: ignore[no-untyped-call]
                        stand_ins[id(param)] = value
                    replaced.append((held, name, param))
                    held[name] = stand_ins[id(param)]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not _ascending.get()):
            yield
    finally:
        for held, name, param in replaced:
            held[name] = param
        torch.clear_autocast_cache()  # its casts may be without a graph
