"""Processes and their resource usage."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


class RunFailed(RuntimeError):
    """Failure of a measured run; the text contains its output."""


@dataclass(frozen=True)
class Finished:
    """Finished process.

    Attributes:
        code: exit code; None when it had to be killed.
        wall: seconds that it took.
        processor: processor seconds of it and its children.
        memory: peak resident MB, of whichever of them had most.
        output: file with all that it printed.
    """

    code: int | None
    wall: float
    processor: float
    memory: float
    output: Path


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen]:
    """A command that runs in a folder, in a process group of its own, and is killed at the end if it still does.

    `output.txt` in the folder gets what it prints.
    """
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def finish(process: subprocess.Popen, folder: Path, seconds: float) -> Finished:
    """Wait for the end of a process that runs in a folder, and kill it after so many seconds; `wall` begins now."""
    started, killed = time.monotonic(), False
    # Not `Popen.wait`: only `wait4` tells what a single child has used.
    while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        if not killed and time.monotonic() - started > seconds:
            os.killpg(process.pid, signal.SIGKILL)
            killed = True
        time.sleep(0.02)
    wall = time.monotonic() - started
    _, status, usage = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    return Finished(
        None if killed else process.returncode,
        wall,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss / 1024,
        folder / "output.txt",
    )


def run_process(command: list[str], environment: dict[str, str], folder: Path, seconds: float) -> Finished:
    """Run a command in a folder, for so many seconds at most."""
    with running(command, environment, folder) as process:
        return finish(process, folder, seconds)


def process_seconds(pid: int) -> float:
    """Return the processor seconds that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def machine_seconds() -> float:
    """Return the processor seconds that this machine was busy so far."""
    user, nice, system, _, _, interrupts, softirqs, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, interrupts, softirqs))) / TICKS
