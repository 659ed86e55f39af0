"""Progress reports of the running stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from patch.pipeline.runs.progress import Progress, read_progress, write_progress

_log: Path | None = None


def start_reports(log: Path | None, begun: bool = False) -> None:
    """Begin to report to the file beside ``log``, or drop reports without a log.

    With ``begun`` another process of the job has begun the file.
    """
    global _log
    _log = log
    if not begun:
        _report(Progress())


def report(done: int, total: int, seconds_left: float | None = None) -> None:
    """Report the number of completed steps, blocks or tasks, their total, and the estimated seconds that are left."""
    _report(Progress(done=done, total=total, seconds_left=seconds_left))


def report_end(state: str, error: str = "") -> None:
    """Report how the job ends, as in `Progress.state`; the counts stay."""
    if _log is not None and (written := read_progress(_log)):
        _report(written.progress.model_copy(update={"state": state, "error": error, "seconds_left": None}))


def _report(progress: Progress) -> None:
    if _log is not None:
        write_progress(_log, progress)


def show_blocks(name: str) -> Callable[[int, int], None]:
    """Return a callback that prints and reports the number of finished blocks."""
    started = time.monotonic()

    def show(done: int, total: int) -> None:
        print(f"{name}: block {done}/{total}", flush=True)
        report(done, total, (time.monotonic() - started) / done * (total - done) if done else None)

    return show
