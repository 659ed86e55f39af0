"""The one exception that a user's mistake raises."""


class InputError(ValueError):
    """Bad input from a user: names the key or file, the value, and what would be right.

    The command line prints its message alone, without a traceback, and exits with 2.
    """
