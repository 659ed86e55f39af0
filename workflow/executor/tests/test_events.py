"""Events of a job, in files that may be damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from snakemake_executor_plugin_submitit.events import append_event, read_events

EVENT = {"event": "start", "tag": "tag", "node": "n1", "time": 1.0, "restarts": 0}
END = {"event": "end", "tag": "tag", "node": "n1", "time": 2.0, "exit": 0}
BAD = {
    "zeros": b"\0" * 40,
    "no JSON": b"start",
    "not UTF-8": b'{"event": "start", "tag": "tag", "node": "\xff", "time": 1.0}',
    "a list": b"[]",
    "a number": b"7",
    "an unknown event": b'{"event": "begin", "tag": "tag", "node": "n1", "time": 1.0}',
    "an event that is a list": b'{"event": ["start"], "tag": "tag", "node": "n1", "time": 1.0}',
    "no tag": b'{"event": "start", "node": "n1", "time": 1.0}',
    "a node that is a number": b'{"event": "start", "tag": "tag", "node": 1, "time": 1.0}',
    "a time that is a text": b'{"event": "start", "tag": "tag", "node": "n1", "time": "1"}',
    "a time beyond the calendar": b'{"event": "start", "tag": "tag", "node": "n1", "time": 1e300}',
    "a time that is infinite": b'{"event": "start", "tag": "tag", "node": "n1", "time": Infinity}',
    "an end without an exit code": b'{"event": "end", "tag": "tag", "node": "n1", "time": 1.0}',
    "an exit code that is a text": b'{"event": "end", "tag": "tag", "node": "n1", "time": 1.0, "exit": "0"}',
    "a deep one": b"[" * 100_000,
}


def test_events_are_read_in_their_order(tmp_path: Path) -> None:
    for event in (EVENT, END):
        append_event(tmp_path / "events", event)
    assert read_events(tmp_path / "events") == ([EVENT, END], "")


@pytest.mark.parametrize("line", BAD.values(), ids=BAD)
def test_a_bad_line_is_passed_over(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "events"
    append_event(path, EVENT)
    path.write_bytes(path.read_bytes() + line + b"\n")
    append_event(path, END)
    events, damage = read_events(path)
    assert events == [EVENT, END] and damage.startswith(f"{path}: line 2 cannot be used (")


def test_what_follows_a_line_that_was_cut_off_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "events"
    append_event(path, EVENT)
    path.write_bytes(path.read_bytes() + b'{"event": "sta')
    append_event(path, END)
    assert read_events(path)[0] == [EVENT, END] and path.read_bytes().count(b"\n") == 3
