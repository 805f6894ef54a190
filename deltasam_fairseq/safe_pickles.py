"""What checkpoints of fairseq hold beside tensors, for ``torch.load(weights_only=True)``.

torch loads only names that it was told are harmless. Most of fairseq's are: an
``argparse.Namespace``, and the meters of early versions, for which classes without code stand in.

The NumPy arrays and scalars in meters and scores are not, as NumPy pickles them: its
``dtype.__setstate__`` believes any flags, and the flags say whether the bytes of an array are
numbers or addresses of Python objects. So a pickle that names NumPy's functions gets those of this
module, which make every dtype and array anew with NumPy's own checks. A pickle names them by one
path under NumPy 1 and by another under NumPy 2; both load under both.
"""

from __future__ import annotations

import argparse
import codecs
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T", bound=Callable[..., Any])


def allow_fairseqs() -> None:
    """Tell torch that what fairseq puts into checkpoints is harmless.

    Does nothing before torch 2.4, which cannot be told and loads everything.
    """
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([argparse.Namespace, *_METERS, *_NUMPY])


class Dtype:
    """A NumPy dtype that is being unpickled.

    Args:
        real: The dtype that its code alone describes.

    Attributes:
        real: The dtype that NumPy's constructor made of what the pickle says.
    """

    def __init__(self, real: np.dtype[Any]) -> None:
        self.real = real

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take byte order, fields and unit, and not the flags.

        Args:
            state: Version, byte order, base and shape of a subarray, names and fields of a
                structure, size, alignment, flags, and from version 4 on the unit of a time.
        """
        _, order, subarray, names, fields, size, _, _, *unit = state
        if names:
            formats = [_real(fields[name][0]) for name in names]
            offsets = [fields[name][1] for name in names]
            self.real = np.dtype(
                {"names": names, "formats": formats, "offsets": offsets, "itemsize": size}
            )
        elif subarray:
            self.real = np.dtype((_real(subarray[0]), subarray[1]))
        elif self.real.kind in "mM":
            name, count = unit[0][1][:2]
            self.real = np.dtype(f"{self.real.kind}8[{count}{name.decode()}]")
        self.real = self.real.newbyteorder(order)


class Array(np.ndarray[Any, Any]):
    """A NumPy array that was unpickled; pickled again it is a plain one."""

    def __new__(cls, *_: object) -> Array:
        """Make an empty array, whatever the pickle asks for: its state comes later."""
        return super().__new__(cls, (0,), np.int8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take shape and content, which NumPy checks against each other.

        Args:
            state: Version, shape, dtype, whether columns come first, and the bytes, or the list
                of objects.
        """
        version, shape, dtype, *content = state
        super().__setstate__((version, shape, _real(dtype), *content))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle it as NumPy pickles its own."""
        return np.asarray(self).__reduce_ex__(protocol)


def _real(dtype: Dtype | np.dtype[Any]) -> np.dtype[Any]:
    return dtype.real if isinstance(dtype, Dtype) else dtype


def _in_place_of(path: str, thing: T) -> T:
    # Gives a function or class the name by which pickles ask for another. torch 2.4 and 2.5
    # know no other way: they take no pairs of an object and a name.
    thing.__module__, _, thing.__name__ = path.rpartition(".")
    thing.__qualname__ = thing.__name__
    return thing


def _dtype(code: str, align: bool = False, copy: bool = True) -> Dtype | np.dtype[Any]:
    real: np.dtype[Any] = np.dtype(code, align, copy)
    # Whoever has told torch that this class is harmless, in a user directory say, has told it
    # of NumPy's own functions too. Which of two of one name torch takes is left to chance, and
    # NumPy's take no stand-in.
    return real if type(real) in torch.serialization.get_safe_globals() else Dtype(real)


def _numpy(home: str) -> list[Callable[..., Any]]:
    """Return what stands in for the functions of ``multiarray``, in one of its homes."""

    def _reconstruct(subtype: type, shape: tuple[int, ...], code: bytes) -> Array:
        return Array()

    def scalar(dtype: Dtype | np.dtype[Any], content: bytes) -> Any:
        return _numpys_scalar(_real(dtype), content)

    return [
        _in_place_of(f"{home}._reconstruct", _reconstruct),
        _in_place_of(f"{home}.scalar", scalar),
    ]


# NumPy's own function, wherever it lives; it checks what it gets.
_numpys_scalar: Any = np.float64().__reduce__()[0]

_METERS = [
    _in_place_of(f"{module}.{name}", type(name, (), {}))
    for module in ("fairseq.meters", "fairseq.logging.meters")
    for name in ("AverageMeter", "StopwatchMeter", "TimeMeter")
]
_NUMPY: list[Any] = [
    *_numpy("numpy.core.multiarray"),
    *_numpy("numpy._core.multiarray"),
    _in_place_of("numpy.dtype", _dtype),
    _in_place_of("numpy.ndarray", type("ndarray", (Array,), {})),
    *(Dtype, Array),
    bytes,  # the content of an array without entries
    codecs.encode,  # that of others; torch allows it by itself from 2.5 on
]
