"""Value checks shared by everything that takes rho, eta or a method name."""

from __future__ import annotations

import math


def positive(value: float, name: str) -> float:
    """Return ``value`` if it is a finite number greater than zero.

    Args:
        value: The number.
        name: What to call it in the message.

    Returns:
        The number as a float.

    Raises:
        ValueError: If it is anything else.
    """
    number = _finite(value, name)
    if number <= 0:
        raise ValueError(f"{name} must be greater than 0, got {value!r}")
    return number


def not_negative(value: float, name: str) -> float:
    """Return ``value`` if it is a finite number of at least zero.

    Args:
        value: The number.
        name: What to call it in the message.

    Returns:
        The number as a float.

    Raises:
        ValueError: If it is anything else.
    """
    number = _finite(value, name)
    if number < 0:
        raise ValueError(f"{name} must be at least 0, got {value!r}")
    return number


def one_of(value: str, name: str, allowed: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of the allowed names.

    Args:
        value: The name given.
        name: What to call it in the message.
        allowed: The names that exist.

    Returns:
        The name.

    Raises:
        ValueError: If it is another one; the message lists the allowed ones.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
    return value


def _finite(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)
