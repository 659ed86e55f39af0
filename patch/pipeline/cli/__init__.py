"""Commands of `python -m patch`."""
