"""List the flags of --optimizer delta_sam.

fairseq-train --help does not know plugins, so they are listed here: the
plugin's own, and those of the inner optimizers that --sam-inner can choose.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.markdown import markdown_lines

HELP = "list the flags of --optimizer delta_sam"

Row = tuple[str, str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the form of the output."""
    parser.add_argument(
        "--markdown", action="store_true", help="the plugin's own flags as a table for a README"
    )


def run(args: argparse.Namespace) -> int:
    """Print the flags; most are those of optimizers of fairseq, which has to be there."""
    try:
        own, inner = own_flags(), inner_flag_rows()
    except ImportError as error:
        raise UserError(
            f"the flags are read from fairseq, which does not import here ({error}); "
            "README says how to install it"
        ) from None
    if args.markdown:
        print(markdown(own))
        return 0
    print("--optimizer delta_sam")
    for flag, default, text in own:
        print(f"  {flag} (default: {default})\n      {text}")
    print("\nthe inner optimizers' own flags, with the optimizers that have them")
    for flag, _, text in inner:
        print(f"  {flag}  {text}")
    return 0


def own_flags() -> list[Row]:
    """List the plugin's own flags, with choices, default, and meaning."""
    from deltasam_fairseq.fairseq_plugin.config import SharpnessConfig  # noqa: PLC0415

    rows = []
    for field in fields(SharpnessConfig):
        if field.name.startswith(("sam_", "freelb_")):
            flag = f"--{field.name.replace('_', '-')}{_choices(field.type)}"
            rows.append((flag, f"{field.default}", field.metadata["help"]))
    return rows


def inner_flag_rows() -> list[Row]:
    """List the flags of the inner optimizers, and which have it; defaults are their own."""
    from deltasam_fairseq.fairseq_plugin.inner_optimizer import inner_flags  # noqa: PLC0415

    return [
        (f"--{flag.name.replace('_', '-')}", "", ", ".join(flag.optimizers))
        for flag in inner_flags().values()
    ]


def markdown(rows: list[Row]) -> str:
    """Write flags as a Markdown table."""
    cells = [(f"`{flag}`", f"`{default}`", text) for flag, default, text in rows]
    return "\n".join(markdown_lines(("flag", "default", "meaning"), ("---",) * 3, cells))


def _choices(kind: Any) -> str:
    members = getattr(kind, "__members__", None)
    return " {" + ",".join(members) + "}" if members else ""
