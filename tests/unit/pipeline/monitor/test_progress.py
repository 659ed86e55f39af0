"""How far a job is: lines of logs, processes of this machine, the clock of the files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from patch.pipeline.monitor.here import file_time, printing_processes
from patch.pipeline.monitor.progress import Log, Progress, read_log, read_progress

STEP = "maskllm 120/2000  loss 3.1000  0.500 s/step  940 s left"


def log(*lines: str, written: float = 1000.0) -> Log:
    return Log(lines, written)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (STEP, Progress(120, 2000, 930.0)),
        ("train 1/5  loss 12.5000  2.000 s/step  4 s left", Progress(1, 5, 0.0)),
        ("sparsegpt: block 3/24", Progress(3, 24, 30 / 3 * 21 - 10)),
        ("task 3 of 8: piqa", Progress(2, 8)),
        ("task 3 of 8: piqa 61.20 %, in 42.0 s", Progress(3, 8)),
        ("resuming at step 120", Progress(120)),
        ("stopped by a signal after step 120 of 2000; run again to go on", Progress(120, 2000)),
        ("perplexity 12.3; now piqa", Progress()),
    ],
)
def test_each_kind_of_line_is_read(line: str, expected: Progress) -> None:
    # Ten seconds ago; the job had run for thirty.
    assert read_progress(log("loading", line), 1010.0, started=970.0) == expected


def test_the_newest_line_counts_and_what_follows_it_does_not_matter() -> None:
    lines = (STEP, STEP.replace("120", "130"), "a warning of some library")
    assert read_progress(log(*lines), 1000.0).step == 130


def test_blocks_tell_no_time_where_the_start_is_not_known() -> None:
    assert read_progress(log("sparsegpt: block 3/24"), 1010.0) == Progress(3, 24)


def test_a_clock_that_is_behind_adds_no_time() -> None:
    assert read_progress(log(STEP), 400.0).seconds_left == 940


def test_a_job_that_fell_silent_has_no_time_left_to_tell() -> None:
    assert read_progress(log(STEP), 1000.0 + 3600) == Progress(120, 2000, None, 3600.0)
    slow = "maskllm 120/2000  loss 3.1000  300.000 s/step  564000 s left"
    assert read_progress(log(slow), 1000.0 + 3600).silent == 0


def test_the_end_of_a_log_is_read_without_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "job.log"
    path.write_bytes(b"x" * 50_000 + b"\n\x1b[31mred\x1b[0m\n\n10 %\r20 %\rlast \xff\n")
    os.utime(path, (5, 5))
    found = read_log(path)
    assert found == Log((" [31mred [0m", "10 %", "20 %", "last \ufffd"), 5.0)
    assert read_log(tmp_path / "none.log") is None


@pytest.mark.parametrize(
    ("line", "error", "stopped"),
    [
        ("error: the loss is nan", "the loss is nan", False),
        ("ValueError: no", "ValueError: no", False),
        ("torch.OutOfMemoryError: CUDA out of memory.", "torch.OutOfMemoryError: CUDA out of memory.", False),
        ("Errors are shown above", "", False),
        ("KeyboardInterrupt", "", True),
        ("stopped by a signal after step 3 of 9; run again to go on", "", True),
        (STEP, "", False),
    ],
)
def test_how_a_log_ends(line: str, error: str, stopped: bool) -> None:
    assert (log("before", line).error, log("before", line).stopped) == (error, stopped)
    assert (log(line, STEP).error, log(line, STEP).stopped) == ("", False)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_who_prints_into_a_file_is_seen_and_who_reads_it_is_not(tmp_path: Path) -> None:
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


def test_the_time_is_that_of_new_files(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("x")
    assert abs(file_time(tmp_path) - (tmp_path / "new").stat().st_mtime) < 5
    assert abs(file_time(tmp_path / "none") - time.time()) < 5
    assert len(list(tmp_path.iterdir())) == 1
