"""The one exception that a user's mistake raises, and what a command line makes of it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input from a user: names the key or file, the value, and what would be right.

    The command line prints its message alone, without a traceback, and exits with 2.
    """


def print_result(result: Callable[[], str]) -> int:
    """Print what a command has to say, or a user's mistake; returns the exit code."""
    try:
        print(result())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
