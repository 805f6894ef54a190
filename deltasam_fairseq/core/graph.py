"""Which parameters a loss depends on, and gradients kept out of the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def reached(loss: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """List the parameters that receive a gradient from a loss.

    Walks the autograd graph; no backward pass is run.

    Args:
        loss: Any tensor with a graph.
        params: Candidates.

    Returns:
        Those of ``params`` that are leaves of the graph, in their order.
    """
    found: set[int] = set()
    visited = set()
    stack = [loss.grad_fn] if loss.grad_fn is not None else []
    while stack:
        node = stack.pop()
        if node in visited:
            continue
        visited.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.add(id(leaf))
        stack.extend(child for child, _ in node.next_functions if child is not None)
    return [p for p in params if id(p) in found]


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
def gradients_aside(params: Sequence[Tensor]) -> Iterator[None]:
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
