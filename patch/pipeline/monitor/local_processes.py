"""Processes of this machine and their output files, and the clock of the file system."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import psutil


def printing_processes() -> dict[str, float]:
    """Return a map from each file that is the standard output or error of a process to that process's age in seconds.

    A file of several processes maps to the age of the oldest. Only this user's processes on this machine are found.
    Processes that read a file, such as `tail -f`, are not counted because they have it open under another descriptor.
    """
    ages: dict[str, float] = {}
    for process in psutil.process_iter():
        try:
            files = {file.path for file in process.open_files() if file.fd in (1, 2)}
            age = max(0.0, time.time() - process.create_time())
        except psutil.Error:  # The process is another user's or has ended.
            continue
        for file in files:
            ages[file] = max(age, ages.get(file, 0.0))
    return ages


def file_time(folder: Path | str) -> float:
    """Return the seconds since the epoch by the clock that sets modification times in ``folder``.

    This machine's clock is used if no file can be created there.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\n")
            file.flush()
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
