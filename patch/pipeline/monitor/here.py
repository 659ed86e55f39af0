"""What runs on this machine, and what time the file system has."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

PROCESSES = Path("/proc")


def printing_processes() -> dict[str, float]:
    """File -> seconds since the oldest process started whose standard output or error it is.

    Only this user's processes on this machine are seen, and none where there is no `/proc`. Who merely reads a
    file, as `tail -f` does, has it elsewhere.
    """
    ages: dict[str, float] = {}
    for process in PROCESSES.glob("[0-9]*"):
        try:
            files = {os.readlink(process / "fd" / number) for number in ("1", "2")}
            age = _age(process)
        except (OSError, ValueError, IndexError):  # of another user, or ended meanwhile
            continue
        for file in files:
            ages[file] = max(age, ages.get(file, 0.0))
    return ages


def _age(process: Path) -> float:
    """Seconds since a process started. A span of time: no clock that could be wrong plays a part."""
    # After the name, which may hold anything, in brackets.
    ticks = float((process / "stat").read_text().rpartition(")")[2].split()[19])
    uptime = float((PROCESSES / "uptime").read_text().split()[0])
    return max(0.0, uptime - ticks / os.sysconf("SC_CLK_TCK"))


def file_time(folder: Path | str) -> float:
    """Seconds since the epoch by the clock that dates the files of ``folder``.

    This machine's own where no file can be made there.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\n")
            file.flush()
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
