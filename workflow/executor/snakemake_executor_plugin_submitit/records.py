"""JSON files that a job writes for Snakemake, its events and its result, and strict parsing of damaged JSON.

Jobs on compute nodes import this module, so it imports little.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Last second since the epoch that `datetime` can represent.
LAST_SECOND = 253_402_300_799
# Maximum size of a result file in bytes: it holds an exit code and one line.
_MAX_RESULT = 100_000


def parse_json(content: bytes) -> Any:
    """Parse one JSON value in UTF-8.

    Raises:
        ValueError: the content is not a valid JSON value.
    """
    try:
        return json.loads(content.decode(), parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def parse_lines(path: Path, content: bytes, use: Callable[[Any], None]) -> str:
    """Pass the JSON value of each line to a function.

    Args:
        path: path for the message.
        content: bytes of the file.
        use: function that raises ValueError for an invalid value.

    Returns:
        A message about the invalid lines, empty without such lines.
    """
    bad = []
    for number, line in enumerate(io.BytesIO(content), 1):
        try:
            use(parse_json(line))
        except ValueError as error:
            bad.append(f"{path}: line {number} cannot be used ({error})")
    return "".join(bad[:1]) + (f", nor can {len(bad) - 1} more" if len(bad) > 1 else "")


def check_fields(value: Any, fields: Mapping[str, Callable[[Any], bool]]) -> dict[str, Any]:
    """Check the fields of a JSON object and return it; further fields are allowed.

    Raises:
        ValueError: the value is not an object, or a field is missing or invalid.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{_shortened(value)} is not an object")
    for name, fits in fields.items():
        if name not in value:
            raise ValueError(f"`{name}` is missing")
        if not fits(value[name]):
            raise ValueError(f"`{name}` is {_shortened(value[name])}")
    return value


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_text(value: Any) -> bool:
    """Return whether a value is a string that can be encoded."""
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


def _is_exit_code(value: Any) -> bool:
    """Return whether a value is an exit code, negative for a signal."""
    return isinstance(value, int) and not isinstance(value, bool) and -128 < value < 256


_EVENT = {
    "event": lambda value: value in ("start", "time limit", "terminated", "end"),
    "tag": is_name,
    "node": is_text,
    "time": is_time,
}


def append_event(path: Path, event: dict[str, Any]) -> None:
    """Append an event on a new line, even after a truncated last line."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
        torn = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * torn + json.dumps(event).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_events(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Return the valid events of a job, and a message about invalid lines.

    Raises:
        OSError: the file cannot be read.
    """
    events: list[dict[str, Any]] = []

    def use(value: Any) -> None:
        event = check_fields(value, _EVENT)
        if event["event"] == "end":
            check_fields(event, {"exit": _is_exit_code})
        events.append(event)

    return events, parse_lines(path, path.read_bytes(), use)


@dataclass(frozen=True)
class Result:
    """Content of a result file.

    Attributes:
        exit: exit code of the job's command, or None if the file is damaged.
        reason: reason for a failure, else empty.
    """

    exit: int | None
    reason: str = ""


def write_result(path: Path, result: Result) -> None:
    """Write a result atomically."""
    part = path.with_suffix(".part")
    with part.open("w") as file:
        file.write(json.dumps({"exit": result.exit, "reason": result.reason[:1000]}))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_result(path: Path) -> Result | None:
    """Return the result of a job, or None while the file is missing.

    Raises:
        OSError: the filesystem does not answer.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_RESULT)
    except FileNotFoundError:
        return None
    try:
        value = check_fields(parse_json(content), {"exit": _is_exit_code, "reason": is_text})
    except ValueError as error:
        return Result(None, f"the result file {path} cannot be read ({error})")
    return Result(value["exit"], value["reason"])
