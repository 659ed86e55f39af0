"""Which job of the workflow is which job of SLURM, kept on disk so that a new run can go on from it.

A run of Snakemake has a folder of its own, `<submit folder>/<run>/`, mode 0700 since it holds pickles that
jobs execute: `ledger.jsonl`, events and result of each job, submitit's pickles and SLURM's logs. Only one run writes
to a ledger. A batch is noted before it is submitted and once it is accepted, so that a crash in between is seen.
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
    """The ledger of this run, locked for as long as the run lives.

    Args:
        folder: the submit folder, made when it is not there.
        warn: prints a line for the user.

    Attributes:
        run: folder of this run.
        left: open entries of runs that are over.
        taken: open entries of runs that still live.
        lost: batches of runs that are over, whose jobs are unknown since their ledger is damaged.

    Raises:
        WorkflowError: others can write to the folder, or the ledger of a run that still lives is damaged.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = log.warning) -> None:
        make_private(folder)
        history = History(folder)
        open_entries = [entry for entry in history.entries.values() if entry.outcome is None]
        keepers = {entry.keeper or entry.run for entry in open_entries}
        living = {run for run in keepers | set(history.damage) if is_locked(run)}
        for run, words in history.damage.items():
            if run in living:  # a job that it has would be submitted again, and both would write the same files
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
        with contextlib.suppress(OSError):  # a filesystem without locks: Snakemake's own lock must do
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def submit(self, batch: str, entries: list[Entry]) -> None:
        """Note jobs that are about to be submitted together."""
        jobs = [
            {"tag": e.tag, "rule": e.rule, "wildcards": e.wildcards, "outputs": e.outputs, "logs": e.logs}
            for e in entries
        ]
        self._write(True, event="submit", batch=batch, jobs=jobs)

    def accept(self, batch: str, ids: list[str]) -> None:
        """Note SLURM's ids of a batch."""
        self._write(True, event="accept", batch=batch, ids=ids)

    def adopt(self, entry: Entry) -> None:
        """Take a job of an earlier run over."""
        self._write(False, event="adopt", tag=entry.tag, id=entry.id, run=entry.run.name)

    def end(self, entry: Entry, outcome: str, reason: str = "") -> None:
        """Note how a job ended."""
        entry.outcome, entry.reason = outcome, reason
        self._write(False, event="end", tag=entry.tag, id=entry.id, outcome=outcome, reason=reason)

    def _write(self, at_once: bool, **line: Any) -> None:
        """Append a line; ``at_once`` to the disk, for what no other file would tell after a crash of the machine."""
        self._file.write(json.dumps({**line, "time": round(time.time(), 3)}) + "\n")
        self._file.flush()
        if at_once:
            os.fsync(self._file.fileno())


def _new_run(folder: Path) -> Path:
    """Make a folder that sorts after all others, whatever the clock says."""
    number = max((int(run.name) for run in runs(folder)), default=0)
    while True:
        number += 1
        run = folder / f"{number:06d}"
        with contextlib.suppress(FileExistsError):  # another Snakemake was faster
            run.mkdir(mode=0o700)
            return run
