"""Logs of jobs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from patch.pipeline.monitor.queue import Queue
from patch.pipeline.resources.jobs import Job

TAIL_BYTES = 16_384


def last_lines(path: Path | str, count: int) -> tuple[str, ...]:
    """Return the last ``count`` lines of a log, without blank lines and control characters; none if it is missing."""
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return ()
    if size > TAIL_BYTES:
        del lines[0]  # it may be incomplete
    clean = ("".join(char if char.isprintable() else " " for char in line).rstrip() for line in lines)
    return tuple(filter(None, clean))[-count:]


def logs_of(queue: Queue, jobs: Iterable[Job]) -> list[str]:
    """Return the paths of existing logs: for each job the rule's log, then SLURM's logs of its newest submission."""
    paths: list[Path] = []
    for job in jobs:
        entry = queue.newest(job.outputs)
        paths.append(Path(job.log))
        if entry is not None and entry.id is not None:
            paths += [entry.log("out"), entry.log("err")]
    return [str(path) for path in paths if path.exists()]
