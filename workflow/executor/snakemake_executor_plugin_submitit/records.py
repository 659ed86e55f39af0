"""Strict parsing of JSON that may be damaged: ledgers, events and results. Jobs import it, so it imports little."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Last second since the epoch that `datetime` can represent.
LAST_SECOND = 253_402_300_799


def parse_json(content: bytes) -> Any:
    """Parse one JSON value in UTF-8.

    Raises:
        ValueError: the content is not a valid JSON value.
    """
    try:
        return json.loads(content.decode(), parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_lines(content: bytes, use: Callable[[Any], None]) -> dict[int, str]:
    """Pass the JSON value of each line to a function.

    Args:
        content: bytes of a file.
        use: function that raises ValueError for an invalid value.

    Returns:
        The reason for each invalid line, by line number.
    """
    bad = {}
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else (), 1):
        try:
            use(parse_json(line))
        except ValueError as error:
            bad[number] = str(error)
    return bad


def describe(path: Path, bad: Mapping[int, str]) -> str:
    """Return a message about the invalid lines of a file, empty without such lines."""
    if not bad:
        return ""
    number, reason = next(iter(bad.items()))
    more = f", nor can {len(bad) - 1} more" if len(bad) > 1 else ""
    return f"{path}: line {number} cannot be used ({reason}){more}"


def check_fields(value: Any, fields: Mapping[str, Callable[[Any], bool]]) -> dict[str, Any]:
    """Check the fields of a JSON object and return it; further fields are allowed.

    Raises:
        ValueError: the value is not an object, or a field is missing or invalid.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{_shown(value)} is no object")
    for name, fits in fields.items():
        if name not in value:
            raise ValueError(f"`{name}` is missing")
        if not fits(value[name]):
            raise ValueError(f"`{name}` is {_shown(value[name])}")
    return value


def is_text(value: Any) -> bool:
    """Return whether a value is a printable string."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def is_path(value: Any) -> bool:
    """Return whether a value is a valid file path."""
    try:
        return isinstance(value, str) and b"\0" not in value.encode(errors="surrogateescape") and value != ""
    except UnicodeEncodeError:
        return False


def is_name(value: Any) -> bool:
    """Return whether a value is a valid file name."""
    return is_path(value) and "/" not in value


def is_time(value: Any) -> bool:
    """Return whether a value is a time in seconds since the epoch."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LAST_SECOND


def is_exit_code(value: Any) -> bool:
    """Return whether a value is an exit code, negative for a signal."""
    return isinstance(value, int) and not isinstance(value, bool) and -128 < value < 256


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
