"""Comparisons of named tensors whose failures explain themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor] | Sequence[Tensor]


def assert_close(actual: Tensors, expected: Tensors, *, rtol: float, atol: float = 0.0) -> None:
    """Assert that tensors agree, and report every one that does not.

    Args:
        actual: Tensors by name, or in order.
        expected: Tensors of the same names, shapes and dtypes; ``nan`` equals ``nan``.
        rtol: Largest relative difference, of the expected entry.
        atol: Largest absolute difference.

    Raises:
        AssertionError: If an entry differs by more than ``atol + rtol * |expected|``.
            The message has a line per tensor: how many entries, the worst one
            with its index and ratio, and the range of both sides.
    """
    _assert_all(
        actual,
        expected,
        lambda a, e: torch.isclose(a, e, rtol=rtol, atol=atol, equal_nan=True),
        f"not within rtol={rtol:g}, atol={atol:g}",
    )


def assert_same_bits(actual: Tensors, expected: Tensors) -> None:
    """Assert that tensors agree bit for bit: ``-0.0`` is not ``0.0``, ``nan`` is itself."""
    _assert_all(actual, expected, _same_bits, "not bit-identical")


def copies(tensors: Tensors) -> dict[str, Tensor]:
    """Copy tensors, to compare with them later; a position is a name, ``"0"`` the first."""
    return {name: tensor.detach().clone() for name, tensor in _named(tensors).items()}


def _named(tensors: Tensors) -> dict[str, Tensor]:
    if isinstance(tensors, Mapping):
        return dict(tensors)
    return {str(position): tensor for position, tensor in enumerate(tensors)}


def _assert_all(actual: Tensors, expected: Tensors, equal, complaint: str) -> None:
    left, right = _named(actual), _named(expected)
    assert left.keys() == right.keys(), (
        f"different tensors: {sorted(left.keys() - right.keys())} are only in actual, "
        f"{sorted(right.keys() - left.keys())} only in expected"
    )
    lines = []
    for name, tensor in left.items():
        lines += _report(name, tensor.detach(), right[name].detach(), equal)
    assert not lines, f"{len(lines)} of {len(left)} tensors {complaint}:\n" + "\n".join(lines)


def _report(name: str, actual: Tensor, expected: Tensor, equal) -> list[str]:
    kinds = [f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in (actual, expected)]
    if kinds[0] != kinds[1]:
        return [f"  {name}: {kinds[0]}, expected {kinds[1]}"]
    wrong = ~equal(actual, expected)
    if not wrong.any():
        return []
    a, e = (t.double().flatten() for t in (actual, expected))
    # A difference that is not a number is worse than any that is.
    error = torch.where(wrong.flatten(), (a - e).abs().nan_to_num(torch.inf), -1.0)
    worst = int(error.argmax())
    index = tuple(int(i) for i in torch.nonzero(torch.ones_like(wrong))[worst])
    ratio = a[worst] / e[worst]
    return [
        f"  {name}: {int(wrong.sum())} of {wrong.numel()} entries; worst at {index}: "
        f"{a[worst]:.9g}, expected {e[worst]:.9g}, ratio {ratio:.9g}; "
        f"actual in [{a.min():.4g}, {a.max():.4g}], expected in [{e.min():.4g}, {e.max():.4g}]"
    ]


def _same_bits(actual: Tensor, expected: Tensor) -> Tensor:
    if actual.is_complex() or not actual.is_floating_point():
        return actual == expected
    as_integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
    # A tensor that is no dense block of memory cannot be viewed as integers.
    return actual.contiguous().view(as_integer) == expected.contiguous().view(as_integer)
