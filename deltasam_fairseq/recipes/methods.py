"""What ``--method`` can be, and which flags of fairseq each stands for.

A method is a part, or a sum of parts of different kinds: ``sam+r3f``. Its flags are those of all
its parts, and the order in which they are typed does not matter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.registry import nearest

#: ``True`` is a flag without a value, ``False`` a flag left out.
FlagValue = str | int | float | bool
#: Flags of fairseq, without the leading dashes.
Flags = Mapping[str, FlagValue]

#: The kinds of parts; a recipe's own may be of further ones.
PERTURBATION = "perturbation of the weights"
REGULARIZER = "regularizer"
NOISE = "noise on the embeddings"

JOIN = "+"

#: Criterions that take ``--regularizer``, by those in whose place they train a regularizer.
REGULARIZED = {
    "sentence_prediction": "deltasam_sentence_prediction",
    "label_smoothed_cross_entropy": "deltasam_label_smoothed_cross_entropy",
}


@dataclass(frozen=True)
class Part:
    """What a method is made of.

    Args:
        kind: A method has one part of each kind at most.
        flags: Its flags, where the recipe says nothing else.
        sam_method: The value of ``--sam-method``; none leaves the weights where they are.
        like: Another part whose flags of a recipe it takes and then changes by ``flags``: it is a
            control, to compare with that one.
        searched: Flags that mean nothing to a method without it.
        regularizes: Whether it needs a criterion with ``--regularizer``, which is then put in
            the place of the recipe's by :data:`REGULARIZED`.
    """

    kind: str
    flags: Flags = field(default_factory=dict)
    sam_method: str | None = None
    like: str | None = None
    searched: Sequence[str] = ()
    regularizes: bool = False


def _regularizer(name: str, *searched: str, **flags: FlagValue) -> Part:
    own = {"regularizer": name, **{flag.replace("_", "-"): flags[flag] for flag in flags}}
    return Part(REGULARIZER, own, searched=("regularizer-weight", *searched), regularizes=True)


#: Parts of every recipe, in the order of tables. With random weights delta_sam does all that it
#: does but look at the sentences: the difference is what the weights know.
PARTS: Mapping[str, Part] = {
    "none": Part(PERTURBATION),
    "sam": Part(PERTURBATION, sam_method="sam", searched=("sam-rho",)),
    "delta_sam": Part(PERTURBATION, sam_method="delta_sam", searched=("sam-rho", "sam-eta")),
    "per_instance": Part(PERTURBATION, sam_method="per_instance", searched=("sam-rho",)),
    "random": Part(
        PERTURBATION,
        {"sam-estimator": "random"},
        sam_method="delta_sam",
        like="delta_sam",
        searched=("sam-rho",),
    ),
    "rdrop": _regularizer("rdrop", "rdrop-kl-reduction"),
    "r3f": _regularizer("r3f", "r3f-noise", "r3f-eps"),
    # The proximal term belongs to SMART, and compares with fairseq's moving average.
    "smart": _regularizer(
        "smart",
        *("smart-eps", "smart-step", "smart-sigma", "smart-steps", "smart-bregman"),
        smart_bregman=1.0,
        store_ema=True,
        ema_fp32=True,
    ),
    "freelb": Part(
        NOISE,
        {"freelb-steps": 3},
        searched=("freelb-steps", "freelb-lr", "freelb-init", "freelb-max-norm", "freelb-norm"),
    ),
}


@dataclass(frozen=True)
class Method:
    """A value of ``--method``.

    Args:
        parts: By name, in the order of :data:`PARTS`.
    """

    parts: Mapping[str, Part]

    @property
    def name(self) -> str:
        """The names of its parts in one order, which records and folders go by."""
        return JOIN.join(self.parts)

    @property
    def sam_method(self) -> str:
        """The value of ``--sam-method``."""
        return next((one.sam_method for one in self.parts.values() if one.sam_method), METHODS[0])

    @property
    def regularizer(self) -> str | None:
        """The part that needs a criterion with ``--regularizer``."""
        return next((name for name, one in self.parts.items() if one.regularizes), None)

    def flags(self, entries: Mapping[str, Flags], typed: Collection[str] = ()) -> Flags:
        """Return the flags of all parts.

        Args:
            entries: A recipe's flags by method. Those of a sum replace what its parts say, in
                every method that has these parts.
            typed: Flags that the user gives, which replace all.

        Raises:
            UserError: If two parts give a flag different values, and no one settles it.
        """
        settled: dict[str, FlagValue] = {}
        takes = {one.like or name for name, one in self.parts.items()}
        for entry, flags in entries.items():
            if JOIN in entry and {*entry.split(JOIN)} <= takes:
                settled |= flags
        found: dict[str, FlagValue] = {}
        for name, part in self.parts.items():
            own = {**part.flags, **entries.get(name, {})}
            if part.like:
                own = {**entries.get(part.like, {}), **part.flags}
            for flag in found.keys() & own.keys() - settled.keys() - {*typed}:
                if found[flag] != own[flag]:
                    raise UserError(
                        f"the parts of the method {self.name} have different values of --{flag}: "
                        f"{found[flag]} and, of {name}, {own[flag]}; give --{flag} yourself"
                    )
            found |= own
        return {**found, **settled}


def find_method(name: str, parts: Mapping[str, Part] = PARTS) -> Method:
    """Return what a value of ``--method`` stands for.

    Args:
        name: Names of parts, joined with ``+``, in any order.
        parts: Those there are.

    Raises:
        UserError: If one of them is unknown, or two are of one kind.

    Example:
        >>> find_method("r3f+delta_sam").name
        'delta_sam+r3f'
    """
    typed = [one.strip() for one in name.split(JOIN)]
    for one in typed:
        if one not in parts:
            inside = "" if one == name else f" in {name!r}"
            raise UserError(f"unknown method {one!r}{inside}{nearest(one, parts)}")
    kinds = by_kind(parts)
    for kind, names in kinds.items():
        if len(found := [one for one in typed if one in names]) > 1:
            raise UserError(
                f"the method {name!r} has more than one {kind} ({', '.join(found)}); "
                f"{what_is_allowed(parts)}"
            )
    chosen = {one: parts[one] for one in parts if one in typed}
    return Method({one: chosen[one] for one in chosen if one != "none" or len(chosen) == 1})


def by_kind(parts: Mapping[str, Part]) -> dict[str, list[str]]:
    """Return the names of parts by their kind."""
    kinds: dict[str, list[str]] = {}
    for name, part in parts.items():
        kinds.setdefault(part.kind, []).append(name)
    return kinds


def what_is_allowed(parts: Mapping[str, Part] = PARTS) -> str:
    """Say what a method may be made of."""
    kinds = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in by_kind(parts).items())
    return f"a method is one of a kind, or a sum such as sam+r3f with one of each ({kinds})"


def in_usual_order(methods: Iterable[str]) -> list[str]:
    """Sort methods: first parts, then sums, each in the order of :data:`PARTS`."""
    known = list(PARTS)

    def place(method: str) -> tuple[int, list[int], str]:
        parts = method.split(JOIN)
        places = [known.index(part) if part in known else len(known) for part in parts]
        return len(parts), places, method

    return sorted(methods, key=place)


def takes_regularizer(criterion: object) -> bool:
    """Tell whether a recipe's criterion takes ``--regularizer``, or one in its place does."""
    return criterion in {*REGULARIZED, *REGULARIZED.values()}


def regularized_criterion(recipe: str, typed: str | None, method: Method) -> str:
    """Return the criterion that trains a method, which a regularizer may change.

    Args:
        recipe: That of the recipe.
        typed: That of the user, which replaces it.
        method: With or without a regularizer.

    Raises:
        UserError: If a regularizer needs another criterion than this one.
    """
    criterion = typed or recipe
    if method.regularizer is None or criterion in REGULARIZED.values():
        return criterion
    if typed is None and criterion in REGULARIZED:
        return REGULARIZED[criterion]
    raise UserError(
        f"the method {method.name} needs a criterion with --regularizer, which {criterion} has "
        f"not; {method.regularizer} trains with {' or '.join(REGULARIZED.values())}, or as "
        "Recipe.parts of a recipe says"
    )
