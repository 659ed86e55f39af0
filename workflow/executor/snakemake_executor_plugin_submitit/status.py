"""Status of submitted jobs: from the result file first and from SLURM's state second."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

from snakemake_executor_plugin_submitit.ledger import Entry
from snakemake_executor_plugin_submitit.records import Result, read_result
from snakemake_executor_plugin_submitit.slurm import JobState, QueueWatch

# Seconds that a result file may take to appear on the login node after the job's end.
FINAL_GRACE = 5.0
TAIL_LINES = 20
# Messages of slurmstepd in a job's log; the job's state does not always show OUT_OF_MEMORY.
_OUT_OF_MEMORY = re.compile(r"^slurmstepd.*(exceeded (job )?memory limit|oom[_-]kill)", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class Decision:
    """Decision about a job.

    Attributes:
        kind: `wait`, `success`, `failed`, `lost` (failed, unknown to SLURM), `memory` (resubmit with more), `limit`
            (resubmit if it is resumable) or `again` (resubmit as it was).
        reason: explanation for the user.
    """

    kind: str
    reason: str = ""


WAIT = Decision("wait")


def decide(
    result: Result | None,
    result_age: float,
    state: JobState | None,
    state_age: float,
    answered: bool,
    missing: float,
    patience: float,
) -> Decision:
    """Return the decision about one job.

    Args:
        result: result of the job, None while it is missing.
        result_age: seconds since its result was first seen.
        state: SLURM's state, None if squeue does not list the job.
        state_age: seconds since that state was first seen.
        answered: true if squeue has answered since the submission and since the result was seen.
        missing: seconds since squeue stopped listing the job, 0 while it does or does not answer.
        patience: seconds that a job may be missing, or a damaged result may take to become whole.
    """
    where = f" on {state.node}" if state is not None and state.node else ""
    if result is not None and result.exit is not None:
        if result.exit == 0:
            return Decision("success")
        # The exit code does not reveal an out-of-memory kill; only SLURM's final state does.
        if (not answered or (state is not None and state.alive)) and result_age < patience:
            return WAIT
        if state is not None and state.state == "OUT_OF_MEMORY":
            return Decision("memory", "out of memory")
        reason = result.reason or f"exit code {result.exit}"
        return Decision("failed", f"{reason},{where}" if where else reason)
    if result is not None and result_age > patience:
        return Decision("failed", result.reason)
    if not answered:
        return WAIT
    if state is None:
        reason = "SLURM no longer lists the job, and it has no result"
        return Decision("lost", reason) if missing > patience else WAIT
    if state.alive or state_age < FINAL_GRACE:
        return WAIT
    if state.state == "COMPLETED" and (result is not None or state_age < patience):
        return WAIT
    match state.state:
        case "OUT_OF_MEMORY":
            return Decision("memory", f"out of memory{where}")
        case "NODE_FAIL" | "BOOT_FAIL" | "PREEMPTED" | "REVOKED":
            return Decision("again", f"SLURM ended it: {state.state}{where}")
        case "TIMEOUT":
            return Decision("limit", f"its time limit was reached{where}")
        case "CANCELLED":
            return Decision("failed", f"cancelled from outside{where}")
        case "COMPLETED":
            return Decision("failed", f"SLURM reports COMPLETED{where}, but there is no result file")
    detail = f", {state.reason}" if state.reason not in ("None", "") else ""
    return Decision("failed", f"SLURM ended it: {state.state}{detail}{where}, without a result")


@dataclass
class TrackedJob:
    """An unfinished job. Times are monotonic, so that clocks of other machines do not matter.

    Attributes:
        job: Snakemake's job.
        entry: ledger entry of the current submission.
        info: Snakemake's record of the submitted job, None before the first submission.
        submitted: time at which the current submission was accepted.
        resubmissions: number of resubmissions by the kind of decision.
        refusal: sbatch's message if it refused a resubmission, else empty.
        held: SLURM's reason for holding the job, if a warning about it was printed.
        state: SLURM's state at the last check.
    """

    job: JobExecutorInterface
    entry: Entry
    info: SubmittedJobInfo | None = None
    submitted: float = field(default_factory=time.monotonic)
    resubmissions: Counter[str] = field(default_factory=Counter)
    refusal: str = ""
    held: str = ""
    state: JobState | None = None
    _state_seen: float = 0.0
    _missing_since: float | None = None
    _result: Result | None = None
    _result_seen: float = 0.0

    def restart(self) -> None:
        """Reset the state for a newly accepted submission."""
        self.submitted = time.monotonic()
        self.state = self._missing_since = self._result = None

    def check(self, watch: QueueWatch, patience: float) -> Decision:
        """Check the job and return the decision about it.

        Args:
            watch: SLURM's states; a failed result makes its next call due immediately.
            patience: seconds, see `decide`.
        """
        if self.entry.id is None:  # its resubmission waits
            return WAIT
        now = time.monotonic()
        self._check_result(now, watch)
        answered = watch.asked > max(self.submitted, self._result_seen if self._result else 0.0)
        if answered:
            self._check_state(now, watch.asked, watch.states.get(self.entry.id))
        decision = decide(
            self._result,
            now - self._result_seen,
            self.state,
            now - self._state_seen,
            answered,
            watch.asked - self._missing_since if self._missing_since is not None else 0.0,
            patience,
        )
        if decision.kind in ("failed", "lost") and ran_out_of_memory(self.entry.log("err")):
            return Decision("memory", "out of memory")
        return decision

    def _check_result(self, now: float, watch: QueueWatch) -> None:
        if self._result is not None and self._result.exit is not None:
            return
        first = self._result is None
        self._result = read_result(self.entry.result) or self._result
        if self._result is not None and first:
            self._result_seen = now
            if self._result.exit != 0:
                watch.hurry()

    def _check_state(self, now: float, asked: float, state: JobState | None) -> None:
        if state is None:
            # Counted between answers, so that an unanswering squeue loses no job.
            self._missing_since = asked if self._missing_since is None else self._missing_since
        else:
            self._missing_since = None
            if self.state is None or state.state != self.state.state:
                self._state_seen = now
        self.state = state


def ran_out_of_memory(log: Path) -> bool:
    """Return whether a job's log contains an out-of-memory message of SLURM's daemon."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 10_000))
            return bool(_OUT_OF_MEMORY.search(file.read().decode(errors="replace")))
    except OSError:
        return False


def log_tail(entry: Entry, printed_by_snakemake: bool) -> str:
    """Return the end of the job's own log, or of its output if the log is empty.

    Args:
        entry: ledger entry of the job.
        printed_by_snakemake: true if Snakemake prints the rule's logs itself.
    """
    if printed_by_snakemake and any(map(has_content, entry.logs)):
        return ""
    for path in [*map(Path, entry.logs), entry.log("err"), entry.log("out")]:
        if has_content(path):
            try:
                lines = path.read_text(errors="replace").splitlines()[-TAIL_LINES:]
            except OSError:
                continue
            return "\n".join([f"\nThe end of {path}:", *(f"    {line}" for line in lines), ""])
    return ""


def has_content(path: Path | str) -> bool:
    """Return whether a file exists and is not empty."""
    try:
        return Path(path).stat().st_size > 0
    except OSError:
        return False
