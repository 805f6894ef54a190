"""Which parameters a loss depends on, and gradients kept out of the way."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def differentiate(
    loss: Tensor, params: Sequence[Tensor], *, create_graph: bool = False
) -> list[Tensor]:
    """Return the gradients of a scalar, zeros where it does not depend on a parameter.

    Args:
        loss: A tensor of one element with a graph; the graph is kept.
        params: Leaves to differentiate by.
        create_graph: Whether the gradients can be differentiated again.

    Returns:
        One tensor per parameter, of its shape.
    """
    found = torch.autograd.grad(
        loss, params, retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)]


@contextmanager
def gradients_aside(params: Sequence[Tensor]) -> Generator[None, None, None]:
    """Give a block empty ``.grad`` fields and put the old ones back untouched.

    Args:
        params: The parameters whose gradients belong to somebody else.

    Yields:
        Nothing.
    """
    kept = [p.grad for p in params]
    for param in params:
        param.grad = None
    try:
        yield
    finally:
        for param, gradient in zip(params, kept, strict=True):
            param.grad = gradient


@contextmanager
def gradients_added(params: Sequence[Tensor]) -> Generator[None, None, None]:
    """Add what a block leaves in ``.grad`` to what was there, or nothing if it fails.

    Args:
        params: The parameters.

    Yields:
        Nothing.
    """
    with gradients_aside(params):
        yield
        added = take_gradients(params)
    for param, gradient in zip(params, added, strict=True):
        if param.grad is None:
            param.grad = gradient
        elif gradient is not None:
            param.grad.add_(gradient)


def take_gradients(params: Sequence[Tensor]) -> list[Tensor | None]:
    """Take the gradients out of the parameters, leaving ``.grad`` empty.

    Args:
        params: The parameters.

    Returns:
        Their gradients, ``None`` where there was none.

    Raises:
        ValueError: If a gradient is sparse: a perturbation covers all weights.
    """
    taken = []
    for param in params:
        if param.grad is not None and param.grad.layout is not torch.strided:
            raise ValueError(
                "sharpness-aware steps need dense gradients; build embeddings with sparse=False"
            )
        taken.append(param.grad)
        param.grad = None
    return taken


def leaves(loss: Tensor) -> list[Tensor]:
    """List the leaves of a graph that receive a gradient.

    Args:
        loss: A tensor; its graph is kept.

    Returns:
        Parameters and inputs that require a gradient, but for those that the graph
        hides inside layers whose activations are checkpointed.
    """
    found: list[Tensor] = []
    seen: set[Any] = set()
    todo: list[Any] = [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().endswith("AccumulateGrad"):
            found.append(node.variable)
        todo.extend(behind for behind, _ in node.next_functions)
    return found


def reached(loss: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """List the parameters that receive a gradient from a loss.

    Runs a backward pass: a walk through the graph would not see the parameters
    of layers whose activations are checkpointed.

    Args:
        loss: A tensor of one element; its graph is used up.
        params: Candidates. Every ``.grad`` is left as it was, also that of other leaves.

    Returns:
        Some of ``params``, in their order.
    """
    if not loss.requires_grad:
        return []
    with gradients_aside([*params, *leaves(loss)]):
        torch.autograd.backward(loss)
        return [p for p in params if p.grad is not None]
