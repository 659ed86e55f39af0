"""Exception for invalid user input, and its output on the command line."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence


class InputError(ValueError):
    """Invalid user input; the message names the key or file, the value, and a valid alternative.

    The command line prints only the message, without a traceback, and exits with code 2.
    """


def print_result(result: Callable[[], str]) -> int:
    """Print the result of a command, or the message of an `InputError`, and return the exit code."""
    try:
        print(result())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def suggest(word: str, known: list[str]) -> str:
    """Return a hint for the unknown ``word``: the closest known word, if any, and the list of all known words."""
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean `{close[0]}`? " if close else ""
    return f"{hint}known: {', '.join(known)}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return the first ``most`` names, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
