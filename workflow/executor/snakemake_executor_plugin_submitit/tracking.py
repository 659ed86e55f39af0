"""State tracking of submitted jobs."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

from snakemake_executor_plugin_submitit.history import Entry
from snakemake_executor_plugin_submitit.outcome import WAIT, Result, Verdict, judge, ran_out_of_memory, read_result
from snakemake_executor_plugin_submitit.slurm import JobState, QueueWatch

TAIL_LINES = 20


@dataclass
class Tracked:
    """An unfinished job. Times are monotonic, so that clocks of other machines do not matter.

    Attributes:
        entry: ledger entry of the current submission.
        info: Snakemake's record of the job, None before the first submission.
        submitted: time at which the current submission was accepted.
        memory_factor: factor on the requested memory.
        out_of_memory: number of out-of-memory kills.
        limits: remaining resubmissions after a time limit at which the job did not requeue itself.
        lost: number of losses to node failures.
        state: SLURM's state at the last check.
    """

    entry: Entry
    info: SubmittedJobInfo | None = None
    submitted: float = field(default_factory=time.monotonic)
    memory_factor: float = 1.0
    out_of_memory: int = 0
    limits: int | None = None
    lost: int = 0
    state: JobState | None = None
    _state_seen: float = 0.0
    _missing_since: float | None = None
    _result: Result | None = None
    _result_seen: float = 0.0

    def restart(self) -> None:
        """Reset the state for a newly accepted submission."""
        self.submitted = time.monotonic()
        self.state = self._missing_since = self._result = None

    def look(self, watch: QueueWatch, patience: float) -> Verdict:
        """Check the job and return the decision about it.

        Args:
            watch: SLURM's states; a failed result makes its next call due immediately.
            patience: seconds, see `judge`.
        """
        if self.entry.id is None:  # its resubmission waits
            return WAIT
        now = time.monotonic()
        self._look_at_result(now, watch)
        answered = watch.asked > max(self.submitted, self._result_seen if self._result else 0.0)
        if answered:
            self._look_at_state(now, watch.asked, watch.states.get(self.entry.id))
        verdict = judge(
            self._result,
            now - self._result_seen,
            self.state,
            now - self._state_seen,
            answered,
            watch.asked - self._missing_since if self._missing_since is not None else 0.0,
            patience,
        )
        if verdict.kind == "failed" and ran_out_of_memory(self.entry.log("err")):
            return Verdict("memory", "out of memory")
        return verdict

    def _look_at_result(self, now: float, watch: QueueWatch) -> None:
        if self._result is not None and not self._result.damaged:
            return
        first = self._result is None
        self._result = read_result(self.entry.result) or self._result
        if self._result is not None and first:
            self._result_seen = now
            if self._result.exit != 0:
                watch.hurry()

    def _look_at_state(self, now: float, asked: float, state: JobState | None) -> None:
        if state is None:
            # Counted between answers, so that an unanswering squeue loses no job.
            self._missing_since = asked if self._missing_since is None else self._missing_since
        else:
            self._missing_since = None
            if self.state is None or state.state != self.state.state:
                self._state_seen = now
        self.state = state


def make_entry(job: JobExecutorInterface, run: Path) -> Entry:
    """Return a new ledger entry of a job. Its tag changes with the parameters and the input files.

    The tag includes the working directory, so that workflows can share a submit folder.
    """
    parts = list(job.jobs) if job.is_group() else [job]
    identity = [
        [
            part.rule.name,
            sorted(part.wildcards_dict.items()),
            sorted((str(key), str(value)) for key, value in part.params.items()),
            [str(path) for path in part.output],
            [_stamp(path) for path in part.input],
        ]
        for part in parts
    ]
    return Entry(
        tag=hashlib.sha256(json.dumps([os.getcwd(), identity]).encode()).hexdigest()[:16],
        rule=job.name,
        wildcards={key: str(value) for part in parts for key, value in part.wildcards_dict.items()},
        outputs=[str(path) for part in parts for path in part.output],
        logs=[str(path) for part in parts for path in part.log],
        batch="",
        index=0,
        run=run,
    )


def tail(entry: Entry, printed_by_snakemake: bool) -> str:
    """Return the end of the job's own log, or of its output if the log is empty.

    Args:
        entry: ledger entry of the job.
        printed_by_snakemake: true if Snakemake prints the rule's logs itself.
    """
    if printed_by_snakemake and any(map(size, entry.logs)):
        return ""
    for path in [*map(Path, entry.logs), entry.log("err"), entry.log("out")]:
        if size(path):
            try:
                lines = path.read_text(errors="replace").splitlines()[-TAIL_LINES:]
            except OSError:
                continue
            return "\n".join([f"\nThe end of {path}:", *(f"    {line}" for line in lines), ""])
    return ""


def size(path: Path | str) -> int:
    """Return the size of a file in bytes, 0 if it is missing."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def _stamp(path: Any) -> tuple[str, int]:
    """Return a path and its modification time in ns, 0 if it is missing."""
    try:
        return str(path), Path(path).stat().st_mtime_ns
    except OSError:
        return str(path), 0
