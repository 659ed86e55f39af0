"""Tests of the progress files beside the logs of jobs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from patch.pipeline.runs.progress import Progress, progress_path, read_progress, write_progress


def test_progress_is_read_as_it_was_written(tmp_path: Path) -> None:
    log = tmp_path / "learn/patch-joint_hybrid_0.45_t16_s0.log"
    assert read_progress(log) is None
    progress = Progress(done=3, total=24, seconds_left=1.5)
    write_progress(log, progress)
    assert progress_path(log).parent == log.parent and not log.exists()
    os.utime(progress_path(log), (5, 5))
    written = read_progress(log)
    assert (written.progress, written.time) == (progress, 5.0)


@pytest.mark.parametrize("content", ["", "[]", '{"state": "lost"}', '{"done": -1}', "\0" * 9])
def test_a_damaged_file_is_no_progress(tmp_path: Path, content: str) -> None:
    progress_path(tmp_path / "a.log").write_text(content)
    assert read_progress(tmp_path / "a.log") is None
