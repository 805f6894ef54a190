"""What ``--method`` can be, and which flags of fairseq each stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.registry import nearest

#: ``True`` is a flag without a value, ``False`` a flag left out.
FlagValue = str | int | float | bool
#: Flags of fairseq, without the leading dashes.
Flags = Mapping[str, FlagValue]


@dataclass(frozen=True)
class Control:
    """A method to compare with, made of another one.

    Args:
        method: The one of ``METHODS`` that it runs as, with that one's hyperparameters.
        flags: What it changes.
    """

    method: str
    flags: Flags = field(default_factory=dict)

    def flags_of(self, own: Mapping[str, Flags]) -> Flags:
        """Return its flags, where ``own`` has those of a recipe by method."""
        return {**own.get(self.method, {}), **self.flags}


#: Further values of ``--method``. With random weights delta_sam does all that it does but
#: look at the sentences: the difference is what the weights know.
CONTROLS: Mapping[str, Control] = {
    "random": Control("delta_sam", {"sam-estimator": "random"}),
}


def find_method(name: str) -> Control:
    """Return what a value of ``--method`` stands for."""
    if name in METHODS:
        return Control(name)
    if name not in CONTROLS:
        raise UserError(f"unknown method {name!r}{nearest(name, (*METHODS, *CONTROLS))}")
    return CONTROLS[name]
