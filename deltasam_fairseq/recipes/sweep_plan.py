"""Which runs a sweep is made of. Pure functions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.methods import PARTS, Method, Part, find_method

#: Short names of flags, with the part of a method that they are for where the flag itself does
#: not say it. What papers call alpha and lambda is one flag, with values of its own for each.
SHORT: Mapping[str, tuple[str, str | None]] = {
    "rho": ("sam-rho", None),
    "eta": ("sam-eta", None),
    "rdrop-alpha": ("regularizer-weight", "rdrop"),
    "r3f-lambda": ("regularizer-weight", "r3f"),
    "smart-lambda": ("regularizer-weight", "smart"),
}

_SHORT_OF = {flag: name for name, (flag, part) in SHORT.items() if part is None}
_NAME = re.compile(r"[A-Za-z][\w-]*")
_VALUE = re.compile(r"[\w.+@:-]+")

Grid = Mapping[str, Sequence[str]]


def flag_of(name: str) -> str:
    """Return the flag, without dashes, that a name of a grid stands for.

    Example:
        >>> flag_of("rho"), flag_of("lr")
        ('sam-rho', 'lr')
    """
    return SHORT[name][0] if name in SHORT else name


def means_something(name: str, method: Collection[str], parts: Mapping[str, Part] = PARTS) -> bool:
    """Tell whether a name of a grid is one for a method.

    Args:
        name: As typed.
        method: Names of its parts.
        parts: Those that there are.

    Returns:
        True for a flag that none of them searches: it is for every method.

    Example:
        >>> means_something("rho", ["sam", "r3f"]), means_something("rho", ["r3f"])
        (True, False)
    """
    flag, only = SHORT.get(name, (name, None))
    owners = {only} if only else {one for one, part in parts.items() if flag in part.searched}
    return not owners or not owners.isdisjoint(method)


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Args:
        method: Its name.
        seed: Its seed.
        grid: Values by the name typed in ``--grid``, those that mean something to the method.
    """

    method: str
    seed: int
    grid: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Name of its folder and its record.

        Example:
            >>> Cell("sam", 2, (("rho", "0.05"),)).name
            'sam-rho0.05-seed2'
        """
        values = (f"{name}{value}" for name, value in self.grid)
        return "-".join([self.method, *values, f"seed{self.seed}"])

    def overrides(self) -> list[str]:
        """Return the flags of fairseq that the grid's values stand for."""
        return [part for name, value in self.grid for part in (f"--{flag_of(name)}", value)]


def plan(
    methods: Sequence[str],
    seeds: Sequence[int],
    grid: Grid,
    parts: Mapping[str, Part] = PARTS,
) -> list[Cell]:
    """Return the runs, each once, all methods of one seed before those of the next.

    A name of the grid that means nothing to a method is left out for it. An unknown method is an
    error, and so are two names of the grid that are one flag of a method.

    Args:
        methods: As typed.
        seeds: The seeds.
        grid: Values by name.
        parts: What the recipe's methods are made of.

    Example:
        >>> [cell.name for cell in plan(["none", "sam"], [1], {"rho": ["0.01", "0.05"]})]
        ['none-seed1', 'sam-rho0.01-seed1', 'sam-rho0.05-seed1']
    """
    found = [find_method(method, parts) for method in methods]
    cells = (
        Cell(method.name, seed, values)
        for seed in seeds
        for method in found
        for values in _points(method, grid, parts)
    )
    return list(dict.fromkeys(cells))


def _points(
    method: Method, grid: Grid, parts: Mapping[str, Part]
) -> Iterator[tuple[tuple[str, str], ...]]:
    names = [name for name in grid if means_something(name, method.parts, parts)]
    flags = [flag_of(name) for name in names]
    for name, flag in zip(names, flags, strict=True):
        if flags.count(flag) > 1:
            raise UserError(
                f"--grid {name}: --{flag} of the method {method.name} is searched twice, as "
                f"{' and '.join(one for one in names if flag_of(one) == flag)}; leave one out"
            )
    for values in itertools.product(*(grid[name] for name in names)):
        yield tuple(zip(names, values, strict=True))


def read_seeds(text: str) -> list[int]:
    """Return the seeds, each once, of numbers and ranges that are separated by commas.

    Raises:
        UserError: If a part is neither.

    Example:
        >>> read_seeds("1-3,7")
        [1, 2, 3, 7]
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.isdecimal() and int(end) > 0 for end in ends) or int(ends[0]) > int(ends[1]):
            raise UserError(
                f"--seeds {text}: {part!r} is no seed; write numbers of one or more and ranges, "
                "as in 1-5 or 1,2,7"
            )
        seeds += range(int(ends[0]), int(ends[1]) + 1)
    return list(dict.fromkeys(seeds))


def read_grid(entries: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of a grid by name, as typed in entries ``NAME=VALUE,VALUE``.

    The names come in one order, so that a run has one name.

    Raises:
        UserError: If an entry is something else, a name occurs twice or a value cannot be that
            of its flag.

    Example:
        >>> read_grid(["lr=1e-5,1e-05", "sam-rho=0.01,0.02"])
        {'rho': ['0.01', '0.02'], 'lr': ['1e-5']}
    """
    grid: dict[str, list[str]] = {}
    for entry in entries:
        typed, equals, values = entry.partition("=")
        name = _SHORT_OF.get(typed, typed)
        listed = [value.strip() for value in values.split(",")]
        if not equals or not _NAME.fullmatch(name) or not all(listed):
            raise UserError(
                f"--grid {entry}: write NAME=VALUE,VALUE, as in rho=0.01,0.02,0.05; the names are "
                f"{', '.join(SHORT)} and flags of fairseq without dashes"
            )
        if name in grid:
            raise UserError(f"--grid {entry}: {name} is given twice")
        grid[name] = _distinct(name, listed, entry)
    usual = [*SHORT, *sorted(grid)]
    return {name: grid[name] for name in sorted(grid, key=usual.index)}


def _distinct(name: str, values: Sequence[str], entry: str) -> list[str]:
    """Check values and leave out those that only look different, as 0.05 and 5e-2 do."""
    found: dict[float | str, str] = {}
    for value in values:
        number = as_number(value)
        if name in SHORT and not (isinstance(number, float) and 0 < number < inf):
            raise UserError(f"--grid {entry}: {name} {value}: not a number greater than zero")
        if not _VALUE.fullmatch(value):
            raise UserError(
                f"--grid {entry}: {value!r} cannot be searched, since folders are called by it: "
                "letters, digits and . _ + - @ : alone. A value with commas or slashes can be "
                "given as a flag of fairseq, to a sweep of its own with --out"
            )
        found.setdefault(number, value)
    return list(found.values())


def as_number(text: str) -> float | str:
    """Return the value of a flag as a number if it is one: 1e-5 and 1e-05 are equal."""
    try:
        return float(text)
    except ValueError:
        return text
