"""The end of a job's log, and how far the job says there that it is."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

TAIL_BYTES = 16_384
# patch/learning/loop.py: `maskllm 120/2000  loss 3.1000  0.500 s/step  940 s left`.
_STEP = re.compile(r"\b(?P<done>\d+)/(?P<total>\d+)  loss .* (?P<rate>[\d.]+) s/step  (?P<left>\d+) s left$")
# The same: `resuming at step 120`, `stopped by a signal after step 120 of 2000; run again to go on`.
_RESUMED = re.compile(r"^resuming at step (?P<done>\d+)$")
_STOPPED = re.compile(r"^stopped by a signal after step (?P<done>\d+) of (?P<total>\d+)\b")
# patch/pipeline/stages/_common.py: `sparsegpt: block 3/24`.
_BLOCK = re.compile(r": block (?P<done>\d+)/(?P<total>\d+)$")
# patch/pipeline/stages/evaluate.py, at the start and end of a task: `task 3 of 8: piqa`, then the same with
# ` 61.20 %, in 42.0 s`.
_TASK = re.compile(r"^task (?P<number>\d+) of (?P<total>\d+): \S+(?P<ended> .* s)?$")
# How a stage ends that fails: a user's mistake in one line, or Python's traceback.
_ERROR = re.compile(r"^error: |^[\w.]*(Error|Exception)\b")
# And one that was told to stop.
_TOLD = re.compile(r"^stopped by a signal\b|^KeyboardInterrupt\b")
# Seconds without a line after which a job that prints one every step counts as silent, at least.
SILENCE = 900


@dataclass(frozen=True)
class Log:
    """The end of a log.

    Attributes:
        lines: the last that hold text, without control characters.
        written: when the file was changed, seconds since the epoch by the clock of its file system.
    """

    lines: tuple[str, ...]
    written: float

    @property
    def error(self) -> str:
        """The message that the log ends with, empty where it ends with none."""
        last = self.lines[-1] if self.lines else ""
        return last.removeprefix("error: ") if _ERROR.match(last) else ""

    @property
    def stopped(self) -> bool:
        """Whether the job was told to stop and did."""
        return bool(self.lines and _TOLD.match(self.lines[-1]))


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        step: steps, blocks or tasks that are done.
        steps: of how many.
        seconds_left: until the last of them, None where the log does not tell: tasks are of very different sizes.
        silent: seconds since the log's last line, where that is much longer than a step takes; else 0.
    """

    step: int | None = None
    steps: int | None = None
    seconds_left: float | None = None
    silent: float = 0.0


def read_log(path: Path | str) -> Log | None:
    """The end of a log, None where there is none."""
    try:
        # A file system of several machines tells the true time of a change once the file is opened.
        with Path(path).open("rb") as file:
            status = os.fstat(file.fileno())
            file.seek(max(0, status.st_size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return None
    if status.st_size > TAIL_BYTES:
        lines = lines[1:]
    clean = (_printable(line).rstrip() for line in lines)
    return Log(tuple(line for line in clean if line), status.st_mtime)


def _printable(line: str) -> str:
    return line if line.isprintable() else "".join(sign if sign.isprintable() else " " for sign in line)


def read_progress(log: Log, now: float, started: float | None = None) -> Progress:
    """How far the job is by the last line that says so.

    Args:
        log: of the job.
        now: seconds since the epoch, by the clock of the log's file system.
        started: when the job started, by the same clock; None where that is not known.
    """
    age = max(0.0, now - log.written)
    for line in reversed(log.lines):
        if match := _STEP.search(line):
            silent = age if age > max(SILENCE, 20 * float(match["rate"])) else 0.0
            left = max(0.0, float(match["left"]) - age)
            return Progress(int(match["done"]), int(match["total"]), None if silent else left, silent)
        if match := _BLOCK.search(line):
            done, total = int(match["done"]), int(match["total"])
            left = None
            if started is not None and done and log.written > started:
                left = max(0.0, (log.written - started) / done * (total - done) - age)
            return Progress(done, total, left)
        if match := _TASK.search(line):
            return Progress(int(match["number"]) - (match["ended"] is None), int(match["total"]))
        if match := _STOPPED.search(line):
            return Progress(int(match["done"]), int(match["total"]))
        if match := _RESUMED.search(line):
            return Progress(int(match["done"]))
    return Progress()
