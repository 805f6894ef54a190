"""Where the directory is that ``fairseq-train --user-dir`` loads."""

from __future__ import annotations

from pathlib import Path


def plugin_dir() -> Path:
    """Return the user directory that ships inside this package.

    fairseq puts the parent of a ``--user-dir`` on ``sys.path`` and imports its
    last component by name, so that name must not clash with anything else that
    can be imported; hence ``deltasam_user_dir``.

    Returns:
        The absolute path, in a checkout and in an installed wheel alike.

    Example:
        >>> plugin_dir().name
        'deltasam_user_dir'
    """
    return Path(__file__).resolve().parent / "plugin_dir" / "deltasam_user_dir"
