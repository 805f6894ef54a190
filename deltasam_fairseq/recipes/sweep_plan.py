"""Which runs a sweep is made of. Pure functions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.methods import CONTROLS
from deltasam_fairseq.registry import nearest

#: Short names of flags, and the methods that they mean something to.
SHORT = {
    "rho": ("sam-rho", ("sam", "delta_sam", "per_instance", "random")),
    "eta": ("sam-eta", ("delta_sam",)),
}

_SHORT_OF = {flag: name for name, (flag, _) in SHORT.items()}
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


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Args:
        method: How the weights are perturbed.
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


def plan(methods: Sequence[str], seeds: Sequence[int], grid: Grid) -> list[Cell]:
    """Return the runs, each once, all methods of one seed before those of the next.

    A name of the grid that means nothing to a method is left out for it.

    Raises:
        UserError: If a method is unknown.

    Example:
        >>> [cell.name for cell in plan(["none", "sam"], [1], {"rho": ["0.01", "0.05"]})]
        ['none-seed1', 'sam-rho0.01-seed1', 'sam-rho0.05-seed1']
    """
    known = (*METHODS, *CONTROLS)
    for method in methods:
        if method not in known:
            raise UserError(f"unknown method {method!r}{nearest(method, known)}")
    cells = (
        Cell(method, seed, values)
        for seed in seeds
        for method in methods
        for values in _points(method, grid)
    )
    return list(dict.fromkeys(cells))


def _points(method: str, grid: Grid) -> Iterator[tuple[tuple[str, str], ...]]:
    names = [name for name in grid if name not in SHORT or method in SHORT[name][1]]
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
