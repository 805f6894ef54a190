"""Reading what fairseq-generate prints."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from deltasam_fairseq.data.sentencepiece_model import decode
from deltasam_fairseq.errors import UserError


@dataclass(frozen=True)
class Reader:
    """Which lines are hypotheses, and how they become text.

    Args:
        pattern: Matches a line; number and content are its groups.
        to_text: Puts the content together.
    """

    pattern: re.Pattern[str]
    to_text: Callable[[str], str]

    def is_hypothesis(self, line: str) -> bool:
        """Tell whether a line holds a hypothesis."""
        return self.pattern.match(line) is not None

    def read(self, lines: Iterable[str]) -> dict[int, str]:
        """Pick each sentence's best hypothesis, the first, by its number in the data."""
        found: dict[int, str] = {}
        for match in filter(None, map(self.pattern.match, lines)):
            number = int(match.group(1))
            if number not in found:
                found[number] = self.to_text(match.group(2))
        return found


#: Pieces of sentencepiece, which are put together here.
SENTENCEPIECE = Reader(re.compile(r"^H-(\d+)\t[^\t]*\t(.*)$"), decode)
#: Text that the decoding process has put together.
GPT2 = Reader(re.compile(r"^D-(\d+)\t[^\t]*\t(.*)$"), str.strip)


def in_order(found: Mapping[int, str], *, count: int) -> list[str]:
    """Put hypotheses in the order of the data, none missing; fairseq decodes by length."""
    missing = sorted(set(range(count)).difference(found))
    if missing:
        raise UserError(
            f"fairseq-generate left {len(missing)} of {count} sentences out, the first is number "
            f"{missing[0] + 1}; they may be longer than the model's positions: prepare the data "
            "with a smaller --max-source-tokens"
        )
    return [found[index] for index in range(count)]
