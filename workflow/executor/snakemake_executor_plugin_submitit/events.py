"""Event log of a job: its starts and stops, one JSON line each. Jobs import this module, so it imports little."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_submitit.records import (
    check_fields,
    describe,
    is_exit_code,
    is_name,
    is_text,
    is_time,
    read_lines,
)

KINDS = ("start", "time limit", "terminated", "end")
_FIELDS = {"event": lambda value: value in KINDS, "tag": is_name, "node": is_text, "time": is_time}


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
    """Return the valid events in a file, and a message about invalid lines.

    Raises:
        OSError: the file cannot be read.
    """
    events: list[dict[str, Any]] = []

    def use(value: Any) -> None:
        event = check_fields(value, _FIELDS)
        if event["event"] == "end":
            check_fields(event, {"exit": is_exit_code})
        events.append(event)

    return events, describe(path, read_lines(path.read_bytes(), use))
