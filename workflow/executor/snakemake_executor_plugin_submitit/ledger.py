"""Ledger on disk that maps workflow jobs to SLURM jobs, so that a new run can adopt them.

Each Snakemake run has its own folder, `<submit folder>/<run>/`. Its mode is 0700, since it holds pickles that jobs
execute. It contains `ledger.jsonl`, events and result of each job, submitit's pickles and SLURM's logs. Only one run
writes to a ledger. A batch is recorded before its submission and after its acceptance, so that a crash in between is
detected.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_submitit.history import LEDGER, Entry, History, is_locked, runs
from snakemake_executor_plugin_submitit.private import make_private

log = logging.getLogger(__name__)
KEPT_RUNS = 20


class Ledger:
    """Ledger of this run, locked until the run ends.

    Args:
        folder: the submit folder, created if it is missing.
        warn: function that prints a warning.

    Attributes:
        run: folder of this run.
        left: open entries of ended runs.
        taken: open entries of other running Snakemakes.
        lost: batches of ended runs whose jobs are unknown, because the ledger is damaged.

    Raises:
        WorkflowError: other users can write to the folder, or the ledger of a running Snakemake is damaged.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = log.warning) -> None:
        make_private(folder)
        history = History(folder)
        open_entries = [entry for entry in history.entries.values() if entry.outcome is None]
        keepers = {entry.keeper or entry.run for entry in open_entries}
        living = {run for run in keepers | set(history.damage) if is_locked(run)}
        for run, words in history.damage.items():
            if run in living:  # its jobs would be submitted twice and write the same files
                raise WorkflowError(f"{words}; the Snakemake that writes it still runs: wait for it, or stop it")
            warn(f"{words}; passed over")
        self.lost = set[str]().union(*history.lost.values())
        self.left = [entry for entry in open_entries if (entry.keeper or entry.run) not in living]
        self.taken = [entry for entry in open_entries if (entry.keeper or entry.run) in living]
        for old in runs(folder)[:-KEPT_RUNS]:
            if old not in {entry.run for entry in open_entries}:
                shutil.rmtree(old, ignore_errors=True)
        self.run = _new_run(folder)
        self._file = (self.run / LEDGER).open("x")
        with contextlib.suppress(OSError):  # a filesystem without locks: Snakemake's own lock remains
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def submit(self, batch: str, entries: list[Entry]) -> None:
        """Record a batch of jobs before its submission."""
        jobs = [
            {"tag": e.tag, "rule": e.rule, "wildcards": e.wildcards, "outputs": e.outputs, "logs": e.logs}
            for e in entries
        ]
        self._write(True, event="submit", batch=batch, jobs=jobs)

    def accept(self, batch: str, ids: list[str]) -> None:
        """Record SLURM's job ids of a batch."""
        self._write(True, event="accept", batch=batch, ids=ids)

    def adopt(self, entry: Entry) -> None:
        """Record that this run adopts a job of an earlier run."""
        self._write(False, event="adopt", tag=entry.tag, id=entry.id, run=entry.run.name)

    def end(self, entry: Entry, outcome: str, reason: str = "") -> None:
        """Record the outcome of a job."""
        entry.outcome, entry.reason = outcome, reason
        self._write(False, event="end", tag=entry.tag, id=entry.id, outcome=outcome, reason=reason)

    def _write(self, at_once: bool, **line: Any) -> None:
        """Append a line; ``at_once`` syncs it to disk, for facts that no other file holds after a machine crash."""
        self._file.write(json.dumps({**line, "time": round(time.time(), 3)}) + "\n")
        self._file.flush()
        if at_once:
            os.fsync(self._file.fileno())


def _new_run(folder: Path) -> Path:
    """Create a folder that sorts after all others, independent of the clock."""
    number = max((int(run.name) for run in runs(folder)), default=0)
    while True:
        number += 1
        run = folder / f"{number:06d}"
        with contextlib.suppress(FileExistsError):  # another Snakemake was faster
            run.mkdir(mode=0o700)
            return run
