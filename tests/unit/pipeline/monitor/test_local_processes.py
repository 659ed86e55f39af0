"""Tests of the processes that print into a file, and of the clock of the file system."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from patch.pipeline.monitor.local_processes import file_time, printing_processes


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_processes_that_print_into_a_file_are_found_and_readers_are_not(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("printed", "read")]
    for path in paths:
        path.touch()
    sleep = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"]
    with paths[0].open("w") as out, paths[1].open() as read, (tmp_path / "other").open("w") as other:
        processes = [subprocess.Popen(sleep, stdout=out), subprocess.Popen(sleep, stdin=read, stdout=other)]
    try:
        found = printing_processes()
        assert str(paths[1]) not in found
        assert 0 <= found[str(paths[0])] < 30
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert str(paths[0]) not in printing_processes()


def test_file_time_equals_the_time_of_new_files(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("x")
    assert abs(file_time(tmp_path) - (tmp_path / "new").stat().st_mtime) < 5
    assert abs(file_time(tmp_path / "none") - time.time()) < 5
    assert len(list(tmp_path.iterdir())) == 1
