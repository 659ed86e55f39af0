"""Progress of a job, which its stage writes to a JSON file beside the log."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from patch.errors import InputError
from patch.files.io import atomic_file, read_json
from patch.files.schema import Count, Schema, check


class Progress(Schema):
    """Progress of a job.

    Attributes:
        state: `running` from the start; a job that is killed leaves it so. `stopped` after a signal: the job can be
            resumed.
        error: Message of a failed job.
        done: Completed steps, blocks or tasks; None if the job does not count any.
        total: Total number of steps, blocks or tasks.
        seconds_left: Estimated seconds until the last one ends; None without an estimate.
    """

    state: Literal["running", "stopped", "failed", "done"] = "running"
    error: str = ""
    done: Count | None = None
    total: Count | None = None
    seconds_left: float | None = Field(None, ge=0)


@dataclass(frozen=True)
class Written:
    """Progress that was read from a file.

    Attributes:
        progress: Content of the file.
        time: Modification time in seconds since the epoch, by the clock of the file system.
    """

    progress: Progress
    time: float


def progress_path(log: Path | str) -> Path:
    """Return the path of the progress file of a job with this log."""
    return Path(log).with_suffix(".progress.json")


def write_progress(log: Path | str, progress: Progress) -> None:
    """Write the progress of the job with this log, atomically."""
    with atomic_file(progress_path(log)) as temporary:
        temporary.write_text(progress.model_dump_json() + "\n", encoding="utf-8")


def read_progress(log: Path | str) -> Written | None:
    """Return the progress of the job with this log, or None if it has written none."""
    path = progress_path(log)
    try:
        # A network file system reports the current modification time only after the file is opened.
        with path.open("rb") as file:
            time = os.fstat(file.fileno()).st_mtime
        return Written(check(Progress, read_json(path), f"{path}: not the progress of a job"), time)
    except (OSError, InputError):
        return None
