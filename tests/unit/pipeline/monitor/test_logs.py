"""Tests of reading the end of a log."""

from __future__ import annotations

from pathlib import Path

from patch.pipeline.monitor.logs import last_lines


def test_the_end_of_a_log_is_read_without_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "job.log"
    path.write_bytes(b"x" * 50_000 + b"\n\x1b[31mred\x1b[0m\n\n10 %\r20 %\rlast \xff\n")
    assert last_lines(path, 9) == (" [31mred [0m", "10 %", "20 %", "last \ufffd")
    assert last_lines(path, 1) == ("last \ufffd",)
    assert last_lines(tmp_path / "none.log", 9) == ()
