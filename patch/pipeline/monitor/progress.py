"""Progress of a job, parsed from the end of its log."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

TAIL_BYTES = 16_384
# patch/learning/loop.py: `maskllm 120/2000  loss 3.1000  0.500 s/step  940 s left`.
_STEP = re.compile(r"\b(?P<done>\d+)/(?P<total>\d+)  loss .* (?P<rate>[\d.]+) s/step  (?P<left>\d+) s left$")
# Same file: `resuming at step 120`, `stopped by a signal after step 120 of 2000; run again to go on`.
_RESUMED = re.compile(r"^resuming at step (?P<done>\d+)$")
_STOPPED = re.compile(r"^stopped by a signal after step (?P<done>\d+) of (?P<total>\d+)\b")
# patch/pipeline/stages/_common.py: `sparsegpt: block 3/24`.
_BLOCK = re.compile(r": block (?P<done>\d+)/(?P<total>\d+)$")
# patch/pipeline/stages/evaluate.py: `task 3 of 8: piqa` when a task starts. A second line when it ends adds
# ` 61.20 %, in 42.0 s`.
_TASK = re.compile(r"^task (?P<number>\d+) of (?P<total>\d+): \S+(?P<ended> .* s)?$")
# Last line of a failed stage: a one-line message for a user error, or the end of a Python traceback.
_ERROR = re.compile(r"^error: |^[\w.]*(Error|Exception)\b")
# Last line of a stage that a signal stopped.
_TOLD = re.compile(r"^stopped by a signal\b|^KeyboardInterrupt\b")
# Minimum seconds without a new line before a job that logs steps counts as silent.
SILENCE = 900


@dataclass(frozen=True)
class Log:
    """End of a log.

    Attributes:
        lines: last lines that are not blank, without control characters.
        written: modification time of the file, in seconds since the epoch by the clock of its file system.
    """

    lines: tuple[str, ...]
    written: float

    @property
    def error(self) -> str:
        """Error message at the end of the log, empty if there is none."""
        last = self.lines[-1] if self.lines else ""
        return last.removeprefix("error: ") if _ERROR.match(last) else ""

    @property
    def stopped(self) -> bool:
        """Return whether a signal stopped the job."""
        return bool(self.lines and _TOLD.match(self.lines[-1]))


@dataclass(frozen=True)
class Progress:
    """Progress of a job.

    Attributes:
        step: completed steps, blocks or tasks.
        steps: total number of steps, blocks or tasks.
        seconds_left: estimated seconds until the last one ends. None if there is no estimate, as for tasks, whose
            sizes differ widely.
        silent: seconds since the last line of the log if that is much longer than a step takes, otherwise 0.
    """

    step: int | None = None
    steps: int | None = None
    seconds_left: float | None = None
    silent: float = 0.0


def read_log(path: Path | str) -> Log | None:
    """Return the end of a log, or None if it cannot be read."""
    try:
        # A network file system reports the current modification time only after the file is opened.
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
    """Return the progress of a job according to the last progress line of its log.

    Args:
        log: log of the job.
        now: current time in seconds since the epoch, by the clock of the log's file system.
        started: start time of the job by the same clock, None if unknown.
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
