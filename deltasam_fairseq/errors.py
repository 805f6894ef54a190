"""The one exception whose text is written for the person at the terminal."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can put right; its message says what and how.

    The command line prints the message as it is, without a traceback, and
    exits with status 2. A plain ``ValueError`` stays a programming error.
    """
