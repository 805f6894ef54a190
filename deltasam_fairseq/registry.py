"""One registry from names to objects, with errors that help.

All of the project's are open to other people's code: readers of per-sentence losses,
regularizers, weight estimators, radius rules, layer rules and recipes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects under unique names, listed in alphabetical order.

    Args:
        kind: What the entries are, in the singular; used in messages.

    Example:
        >>> colours: Registry[int] = Registry("colour")
        >>> colours.register("red", description="like a poppy")(0xFF0000)
        16711680
        >>> colours.get("rad")
        Traceback (most recent call last):
            ...
        deltasam_fairseq.registry.UnknownName: unknown colour 'rad'; did you mean 'red'? Known: red
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._descriptions: dict[str, str] = {}

    def register(self, name: str, *, description: str = "") -> Callable[[T], T]:
        """Return a decorator that stores its argument under ``name``.

        Args:
            name: The unique name.
            description: One line for listings; the first line of the object's
                own docstring when left out.

        Returns:
            The decorator. It gives its argument back unchanged.
        """

        def store(entry: T) -> T:
            known = self._entries.get(name)
            if known is not None and known is not entry:
                raise ValueError(
                    f"{self.kind} {name!r} is taken by {known!r}; "
                    f"register {entry!r} under another name"
                )
            doc = (getattr(entry, "__doc__", None) or "").strip().splitlines()
            self._entries[name] = entry
            self._descriptions[name] = description or (doc[0] if doc else "")
            return entry

        return store

    def get(self, name: str) -> T:
        """Look an entry up.

        Args:
            name: Its name.

        Returns:
            The entry.

        Raises:
            UnknownName: If nothing is registered under ``name``; the message
                names the nearest entry and lists all of them.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownName(self._unknown(name)) from None

    def names(self) -> list[str]:
        """Return all names in alphabetical order."""
        return sorted(self._entries)

    def items(self) -> Iterator[tuple[str, T]]:
        """Yield name and entry in alphabetical order of the names."""
        for name in self.names():
            yield name, self._entries[name]

    def describe(self, name: str) -> str:
        """Return the one-line description of an entry."""
        self.get(name)
        return self._descriptions[name]

    def __contains__(self, name: object) -> bool:
        """Tell whether a name is taken."""
        return name in self._entries

    def _unknown(self, name: str) -> str:
        return f"unknown {self.kind} {name!r}{nearest(name, self._entries)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Help somebody who mistyped a name.

    Args:
        name: What was typed.
        known: The names there are.

    Returns:
        The end of a message: the nearest name, if one is near, and all of them.

    Example:
        >>> nearest("rad", ["red", "blue"])
        "; did you mean 'red'? Known: blue, red"
    """
    names = sorted(known)
    return f"{did_you_mean(name, names) or '.'} Known: {', '.join(names) or 'none'}"


def did_you_mean(name: str, known: Iterable[str], *, near: float = 0.6) -> str:
    """Ask whether another name was meant.

    Args:
        name: What was typed.
        known: The names there are.
        near: How alike two names have to be, from 0 to 1, which is equal.

    Returns:
        The end of a message; empty if no name is near.

    Example:
        >>> did_you_mean("rad", ["red", "blue"])
        "; did you mean 'red'?"
    """
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=near)
    return f"; did you mean {found[0]!r}?" if found else ""


class UnknownName(KeyError):
    """A name that no registry entry has; its text is meant for the user."""

    def __str__(self) -> str:
        """Return the message without the quotes that ``KeyError`` adds."""
        return str(self.args[0])
