"""An argument parser that names what was probably meant by an unknown name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from deltasam_fairseq.registry import did_you_mean, nearest

# A flag that is passed on may well be fairseq's: of its 822 flags --tpu, --beam-mt, --user-dir and
# --encoder-glu are as near to one of ours.
_NEAR = 0.8


class Parser(argparse.ArgumentParser):
    """Names the nearest verb, choice and flag; the parsers of its verbs are of the same class.

    A flag has to be written out. Parsed arguments have one attribute more, ``known_flags``: those
    of the parsers on their way.

    Args:
        options: As for argparse.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and keep what the flags of the chosen verb are.

        Args:
            args: As for argparse.
            namespace: As for argparse.

        Returns:
            The arguments, and those that are unknown.
        """
        found, extra = super().parse_known_args(args, namespace)
        # A verb's parser runs within that of the program, which hands its attributes on.
        found.known_flags = [*getattr(found, "known_flags", ()), *self._option_string_actions]
        return found, extra

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = map(str, action.choices)
            raise argparse.ArgumentError(
                action, f"invalid choice: {value!r}{nearest(str(value), known)}"
            )


def unrecognized(extra: Sequence[str], known: Sequence[str]) -> str:
    """Say which arguments are unknown, and what each flag among them was probably meant to be.

    Args:
        extra: The arguments.
        known: The flags there are.

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

    Args:
        extra: Arguments for the other program.
        known: Flags of this one.

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
