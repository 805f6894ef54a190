"""Print the folder to give to fairseq's --user-dir.

fairseq-train DATA --user-dir "$(deltasam user-dir)" --optimizer delta_sam …
"""

from __future__ import annotations

import argparse

from deltasam_fairseq.plugin_path import plugin_dir

HELP = "print the folder for fairseq's --user-dir"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: this verb has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the path.

    Args:
        args: None.

    Returns:
        Zero.
    """
    print(plugin_dir())
    return 0
