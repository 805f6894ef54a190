"""An argument parser that names what was probably meant by an unknown name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from deltasam_fairseq.registry import did_you_mean, nearest

# A flag that is passed on may well be fairseq's: of its 822 flags --tpu, --beam-mt, --user-dir and
# --encoder-glu are as near to one of ours.
_NEAR = 0.8


class Parser(argparse.ArgumentParser):
    """Names the nearest verb, choice and flag; the parsers of its verbs are of the same class.

    A flag has to be written out. Parsed arguments have two attributes more: ``known_flags`` of
    the parsers on their way, and the last one itself as ``parser``.

    Args:
        options: As for argparse.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, and keep what the flags of the chosen verb are."""
        self._typed = _flags(sys.argv[1:] if args is None else args)
        found, extra = super().parse_known_args(args, namespace)
        # A verb's parser runs within that of the program, which hands its attributes on.
        found.parser = getattr(found, "parser", self)
        found.known_flags = [*getattr(found, "known_flags", ()), *self._option_string_actions]
        return found, extra

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and stop; a required argument may be there, but mistyped."""
        if " are required: " in message:
            known = self._option_string_actions
            unknown = (flag for flag in self._typed if flag not in known)
            message += "".join(did_you_mean(flag, known) for flag in unknown)
        super().error(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = map(str, action.choices)
            raise argparse.ArgumentError(
                action, f"invalid choice: {value!r}{nearest(str(value), known)}"
            )


def unrecognized(extra: Sequence[str], known: Sequence[str]) -> str:
    """Say which arguments are unknown, and what each flag among them was probably meant to be.

    Returns:
        One line.

    Example:
        >>> unrecognized(["--jsn", "x"], ["--json", "--seed"])
        "unrecognized arguments: --jsn x; did you mean '--json'?"
    """
    hints = (did_you_mean(flag, known) for flag in _flags(extra))
    return f"unrecognized arguments: {' '.join(extra)}{''.join(hints)}"


def passed_on(extra: Sequence[str], known: Sequence[str]) -> list[str]:
    """Find flags for another program that look like mistyped ones of this.

    Returns:
        One line for each.

    Example:
        >>> passed_on(["--sead", "2", "--lr", "0.1"], ["--json", "--seed"])
        ["--sead goes to fairseq; did you mean '--seed'?"]
    """
    hints = ((flag, did_you_mean(flag, known, near=_NEAR)) for flag in _flags(extra))
    return [f"{flag} goes to fairseq{hint}" for flag, hint in hints if hint]


def _flags(arguments: Sequence[str]) -> list[str]:
    return [part.partition("=")[0] for part in arguments if part.startswith("--")]
