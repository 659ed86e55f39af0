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
        code: exit code; None if it was killed at the time limit.
        wall: seconds of wall time.
        processor: processor seconds of the process and its children.
        memory: largest peak resident memory among the process and its children, in MB.
        output: file of its output.
    """

    code: int | None
    wall: float
    processor: float
    memory: float
    output: Path


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen]:
    """Run a command in a folder and in its own process group; kill it at the end of the block if it still runs.

    `output.txt` in the folder gets its output.
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
    """Wait for a process that runs in a folder, and kill it after ``seconds``; `wall` begins with this call."""
    started, killed = time.monotonic(), False
    # Only `wait4` returns the resource usage of a single child.
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
    """Run a command in a folder, and kill it after ``seconds``."""
    with running(command, environment, folder) as process:
        return finish(process, folder, seconds)


def process_seconds(pid: int) -> float:
    """Return the processor seconds that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def machine_seconds() -> float:
    """Return the busy processor seconds of this machine since its start."""
    user, nice, system, _, _, interrupts, softirqs, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, interrupts, softirqs))) / TICKS
