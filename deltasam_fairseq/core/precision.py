"""Passes in plain float32, whatever autocast or TF32 would make of them.

The bend of Eq. 5 is a difference of losses close to float32's rounding error;
a matrix product with ten bits of mantissa drowns it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def is_half(tensor: Tensor) -> bool:
    """Tell whether a tensor is of float16 or bfloat16.

    Args:
        tensor: Any tensor.

    Returns:
        Whether it has half precision.
    """
    return tensor.dtype in (torch.float16, torch.bfloat16)


def wide(tensor: Tensor) -> Tensor:
    """Return a floating-point tensor in float32, or wider if it is.

    Args:
        tensor: Any floating-point tensor.

    Returns:
        Itself unless it is of half precision.
    """
    return tensor.float() if is_half(tensor) else tensor


class NoAutocast(TorchFunctionMode):
    """Run a block without autocast, whatever switches it on inside.

    Args:
        kinds: Types of the devices that compute.

    Attributes:
        met: Whether autocast was on at some operation.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        super().__init__()
        self.met = False
        self._kinds = tuple(kinds)

    def __torch_function__(  # noqa: D105
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for kind in self._kinds:
            if _autocasts(kind):
                self.met = True
                with torch.autocast(kind, enabled=False):
                    return self.__torch_function__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


@contextmanager
def full_precision(tensors: Iterable[Tensor] = ()) -> Iterator[None]:
    """Switch autocast and TF32 off during a block.

    Args:
        tensors: The model's tensors; autocast is switched off on their devices.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        for kind in sorted({t.device.type for t in tensors}):
            stack.enter_context(torch.autocast(kind, enabled=False))
        for backend, name, full in _tf32_switches():
            stack.callback(setattr, backend, name, getattr(backend, name))
            setattr(backend, name, full)
        yield


def is_full_precision(tensors: Iterable[Tensor]) -> bool:
    """Tell whether a pass would already run in full precision.

    Args:
        tensors: The parameters of the model.

    Returns:
        False if one of them is coarser than float32, or if on its device
        autocast is on or TF32 is allowed for what the model computes.
    """
    seen = {(t.device.type, is_half(t), t.dim() > 2) for t in tensors}
    if any(half or _autocasts(kind) for kind, half, _ in seen):
        return False
    switches = _tf32_switches() if any(kind == "cuda" for kind, _, _ in seen) else []
    if not any(convolution for _, _, convolution in seen):
        switches = switches[:1]
    return all(getattr(backend, name) in (full, "none") for backend, name, full in switches)


def _autocasts(kind: str) -> bool:
    try:
        return torch.is_autocast_enabled(kind)
    except TypeError:  # before torch 2.4 the question had two names
        return torch.is_autocast_cpu_enabled() if kind == "cpu" else torch.is_autocast_enabled()


def _tf32_switches() -> list[tuple[Any, str, Any]]:
    """List where TF32 is switched, for products and for convolutions.

    Returns:
        Of each: the object, its attribute, and the value that switches TF32 off.
    """
    backends: Any = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        # torch 2.9 has names instead of flags, and refuses a mixture of both.
        places = (backends.cuda.matmul, backends.cudnn.conv)
        return [(place, "fp32_precision", "ieee") for place in places]
    return [(place, "allow_tf32", False) for place in (backends.cuda.matmul, backends.cudnn)]
