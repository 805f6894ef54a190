"""``python -m deltasam_fairseq.inference PROGRAM …`` runs a checkpoint over a split of its data."""

from __future__ import annotations

import importlib
import sys

#: Each is a module of this package with a function ``main``, which reads the arguments.
PROGRAMS = ("embed", "generate", "predict", "risk")


def main() -> None:
    """Run the program that the first argument names on the arguments after it."""
    program = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if program not in PROGRAMS:
        sys.exit(f"{program!r} is no program; one of {', '.join(PROGRAMS)} comes first")
    importlib.import_module(f"deltasam_fairseq.inference.{program}").main()


if __name__ == "__main__":
    main()
