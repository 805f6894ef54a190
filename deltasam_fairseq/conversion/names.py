"""Names of weights in fairseq and in Hugging Face's library: one table, read in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_PLACE = "{}"


class Names:
    """Pairs of names of modules, of which each has a weight, a bias or both.

    Args:
        pairs: Hugging Face's name and fairseq's; ``{}`` stands for the number of a layer.

    Example:
        >>> names = Names({"encoder.layer.{}.output.dense": "layers.{}.fc2"})
        >>> names.to_fairseq("encoder.layer.11.output.dense.bias")
        'layers.11.fc2.bias'
        >>> names.to_huggingface("layers.11.fc2.bias")
        'encoder.layer.11.output.dense.bias'
    """

    def __init__(self, pairs: Mapping[str, str]) -> None:
        self._ours = dict(pairs)
        self._theirs = {ours: theirs for theirs, ours in pairs.items()}

    def to_fairseq(self, name: str) -> str | None:
        """Return fairseq's name of a weight; none if the table does not have it."""
        return _translate(name, self._ours)

    def to_huggingface(self, name: str) -> str | None:
        """Return Hugging Face's name of a weight; none if the table does not have it."""
        return _translate(name, self._theirs)


def _translate(name: str, table: Mapping[str, str]) -> str | None:
    module, _, kind = name.rpartition(".")
    number = _NUMBER.search(module)
    found = table.get(_NUMBER.sub(_PLACE, module, count=1))
    if found is None or kind not in {"weight", "bias"}:
        return None
    return f"{found.replace(_PLACE, number.group() if number else '')}.{kind}"
