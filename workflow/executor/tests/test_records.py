"""Event logs and result files of jobs, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from snakemake_executor_plugin_submitit.records import Result, append_event, read_events, read_result, write_result

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


def test_results_are_read(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    assert read_result(path) is None
    for result in (Result(0), Result(2, "why \u00e9"), Result(-9)):
        write_result(path, result)
        assert read_result(path) == result


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b'{"exit": 0, "reason": "',
        b"\0" * 30,
        b"\x80\x04\x95.",
        b"{}",
        b"0",
        b"null",
        b'{"exit": 0}',
        b'{"exit": "0", "reason": ""}',
        b'{"exit": 0.0, "reason": ""}',
        b'{"exit": false, "reason": ""}',
        b'{"exit": null, "reason": ""}',
        b'{"exit": NaN, "reason": ""}',
        b'{"exit": 1000, "reason": ""}',
        b'{"exit": 0, "reason": null}',
        b'{"exit": 0, "reason": "\\ud800"}',
        b'{"exit": 0, "reason": "\xff"}',
        b'{"exit": 0, "reason": "' + b" " * 100_000 + b'"}',
        b"[" * 90_000,
        b'{"exit": ' + b"1" * 5000 + b', "reason": ""}',
    ],
)
def test_a_result_that_cannot_be_read_is_damaged(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    result = read_result(path)
    assert result.exit is None
    assert f"the result file {path} cannot be read (" in result.reason and "\n" not in result.reason


def test_a_filesystem_that_is_away_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        read_result(tmp_path)  # a folder cannot be read as a file
