"""Jobs that an earlier Snakemake left in the queue when it was killed."""

from __future__ import annotations

import time
from collections.abc import Callable

from snakemake_executor_plugin_submitit import slurm
from snakemake_executor_plugin_submitit.history import Entry
from snakemake_executor_plugin_submitit.ledger import Ledger
from snakemake_executor_plugin_submitit.outcome import read_result

PAUSES = (5, 10, 20, 40)
CANCEL_SECONDS = 120


class Survivors:
    """Jobs of earlier runs that still live, to be taken over or cancelled.

    Args:
        ledger: of this run; notes what became of those that ended meanwhile.
        say: prints a line for the user.

    Raises:
        SlurmError: squeue does not answer for more than a minute, or jobs do not end.
    """

    def __init__(self, ledger: Ledger, say: Callable[[str], None]) -> None:
        self._say, entries = say, ledger.left
        self._taken = {path: entry for entry in ledger.taken for path in entry.outputs}
        # By what they write: there may be thousands.
        self._living: dict[str, Entry] = {}
        # A batch that was never noted as accepted lacks its pickles.
        lost = ledger.lost | {entry.batch for entry in entries if entry.id is None}
        if not entries and not lost:
            return
        states = self._squeue()
        ids = [state.id for state in states.values() if state.comment in lost and state.alive]
        self._cancel(ids, "that its ledger does not name")
        for entry in entries:
            state = states.get(entry.id)
            # By its comment too: numbers may have begun anew, or be another cluster's.
            if state is not None and state.alive and state.comment == entry.batch:
                self._living |= dict.fromkeys(entry.outputs, entry)
            else:
                result = read_result(entry.result) if entry.id else None
                ledger.end(entry, "success" if result and result.exit == 0 else "failed", "ended unseen")

    def claim(self, entry: Entry) -> Entry | None:
        """The living job that is ``entry``; others that would write the same files are cancelled.

        Raises:
            SlurmError: they do not end, or belong to a Snakemake that still runs.
        """
        for path in entry.outputs:
            if old := self._taken.get(path):
                raise slurm.SlurmError(f"another Snakemake that still runs has it in the queue as job {old.id}")
        same_files = {old.tag: old for path in entry.outputs if (old := self._living.get(path))}
        for path in [path for old in same_files.values() for path in old.outputs]:
            self._living.pop(path, None)
        twin = same_files.pop(entry.tag, None)
        self._cancel([old.id for old in same_files.values()], "that write the same files")
        return twin

    def _cancel(self, ids: list[str], which: str) -> None:
        """Cancel jobs and wait for their end."""
        if not ids:
            return
        self._say(f"Cancelling SLURM jobs of an earlier run {which}: {', '.join(ids)}")
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
                self._say(f"squeue: {error}; trying again in {pause} s")
                time.sleep(pause)
        return slurm.read_squeue()
