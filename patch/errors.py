"""The one exception that a user's mistake raises, and what a command line makes of it."""

from __future__ import annotations

import difflib
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


def suggest(word: str, known: list[str]) -> str:
    """What would be right instead of ``word``: the closest known word and the list of all."""
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean `{close[0]}`? " if close else ""
    return f"{hint}known: {', '.join(known)}"
