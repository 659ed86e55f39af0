"""Adoption of jobs that a killed Snakemake left in the queue."""

from __future__ import annotations

import time
from collections.abc import Callable

from snakemake_executor_plugin_submitit import slurm
from snakemake_executor_plugin_submitit.ledger import Entry, Ledger
from snakemake_executor_plugin_submitit.records import read_result

# Seconds between attempts of squeue.
PAUSES = (5, 10, 20, 40)
CANCEL_SECONDS = 120


class EarlierJobs:
    """Live jobs of earlier runs, to adopt or to cancel.

    Args:
        ledger: ledger of this run; it records the outcomes of jobs that ended meanwhile.
        warn: function that prints a message.

    Raises:
        SlurmError: squeue does not answer for more than a minute, or jobs do not end.
    """

    def __init__(self, ledger: Ledger, warn: Callable[[str], None]) -> None:
        self._warn, entries = warn, ledger.orphaned
        # By output path, for a fast lookup among thousands.
        self._foreign = {path: entry for entry in ledger.foreign for path in entry.outputs}
        self._live: dict[str, Entry] = {}
        # A batch without a recorded acceptance may lack its pickles.
        unrecorded = ledger.unrecorded | {entry.batch for entry in entries if entry.id is None}
        if not entries and not unrecorded:
            return
        states = self._squeue()
        ids = [state.id for state in states.values() if state.comment in unrecorded and state.alive]
        self._cancel(ids, "that its ledger does not name")
        for entry in entries:
            state = states.get(entry.id)
            # The comment must match too: job ids may restart or belong to another cluster.
            if state is not None and state.alive and state.comment == entry.batch:
                self._live |= dict.fromkeys(entry.outputs, entry)
            else:
                result = read_result(entry.result) if entry.id else None
                ledger.end(entry, "success" if result and result.exit == 0 else "failed", "ended unseen")

    def claim(self, entry: Entry) -> Entry | None:
        """Return the live job that equals ``entry``, and cancel others that would write the same files.

        Raises:
            SlurmError: those jobs do not end, or belong to another running Snakemake.
        """
        for path in entry.outputs:
            if old := self._foreign.get(path):
                raise slurm.SlurmError(f"another running Snakemake has submitted it as job {old.id}")
        same_files = {old.tag: old for path in entry.outputs if (old := self._live.get(path))}
        for path in [path for old in same_files.values() for path in old.outputs]:
            self._live.pop(path, None)
        equal = same_files.pop(entry.tag, None)
        self._cancel([old.id for old in same_files.values()], "that write the same files")
        return equal

    def _cancel(self, ids: list[str], which: str) -> None:
        """Cancel jobs and wait for their end."""
        if not ids:
            return
        self._warn(f"Cancelling SLURM jobs of an earlier run {which}: {', '.join(ids)}")
        slurm.cancel(ids)
        deadline = time.monotonic() + CANCEL_SECONDS
        while any(state.alive for state in map(self._squeue().get, ids) if state):
            if time.monotonic() > deadline:
                raise slurm.SlurmError(f"jobs of an earlier run do not end: {', '.join(ids)}; scancel them, run again")
            time.sleep(2)

    def _squeue(self) -> dict[str, slurm.JobState]:
        for pause in PAUSES:
            try:
                return slurm.read_squeue()
            except slurm.SlurmError as error:
                self._warn(f"squeue: {error}; trying again in {pause} s")
                time.sleep(pause)
        return slurm.read_squeue()
