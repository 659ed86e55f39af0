"""SLURM's commands and the parsing of their output."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

# Final job states; in any other state a job may still run.
FINAL = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
TIMEOUT_SECONDS = 30
# Job or array task, state, reason, nodes, start, comment. The comment comes last, since it may contain `|`.
_FORMAT = "%i|%T|%r|%N|%S|%k"
# Messages of an unreachable or busy controller, as opposed to a refusal.
_TRANSIENT = re.compile(
    r"unable to contact slurm controller|socket timed out|connection (refused|timed out|reset)|no route to host"
    r"|communication failure|transport endpoint|zero bytes were transmitted|unexpected message received"
    r"|resource temporarily unavailable|unable to create job record|requested nodes are busy|rate limit exceeded"
    r"|in standby mode|protocol authentication error|munge (en|de)code failed"
    r"|failed to fetch config|could not establish a configuration source",
    re.IGNORECASE,
)


class SlurmError(RuntimeError):
    """Error of a SLURM command, with the command's message."""


def is_transient(message: str) -> bool:
    """Return whether an sbatch error is transient; only sbatch's own reason counts, not a site's further output."""
    reasons = re.findall(r"submission failed: (.*)", message)
    return bool(_TRANSIENT.search(reasons[-1] if reasons else message))


@dataclass(frozen=True)
class JobState:
    """A line of squeue.

    Attributes:
        id: job id, `123` or `123_4`.
        state: SLURM's long name, such as `RUNNING`.
        reason: reason why the job is pending or ended.
        node: nodes of the job.
        start: actual or expected start time, in SLURM's format.
        comment: id of the job's batch.
    """

    id: str
    state: str
    reason: str
    node: str
    start: str
    comment: str

    @property
    def alive(self) -> bool:
        """True if the job may still run."""
        return self.state not in FINAL


def parse_squeue(text: str) -> dict[str, JobState]:
    """Return the job states by job id."""
    states = {}
    for line in text.splitlines():
        job, *values = line.split("|", 5)
        if len(values) == 5:
            states[job] = JobState(job, *values)
    return states


def read_squeue() -> dict[str, JobState]:
    """Return the states of this user's jobs by job id, array tasks one by one, including recently ended ones.

    Raises:
        SlurmError: squeue fails or does not answer.
    """
    return parse_squeue(run(["squeue", "--me", "--array", "--states=all", "--noheader", f"--format={_FORMAT}"]))


class QueueWatch:
    """Periodic squeue calls in a thread, so that a hanging controller does not block.

    Attributes:
        states: job id -> state, from the last answer.
        asked: monotonic time at which the last answered call started; minus infinity before the first.
        error: error message of the last call, empty after a success.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.states: dict[str, JobState] = {}
        self.asked = self._due = self._started = float("-inf")
        self.error = ""
        self._pool = ThreadPoolExecutor(1)
        self._call: Future[dict[str, JobState]] | None = None

    def poll(self) -> bool:
        """Start a due call or collect its answer; return whether there is a new answer."""
        if self._call is None:
            if (now := time.monotonic()) >= self._due:
                self._started, self._due = now, now + self.interval
                self._call = self._pool.submit(read_squeue)
            return False
        if not self._call.done():
            return False
        call, self._call = self._call, None
        try:
            self.states, self.asked, self.error = call.result(), self._started, ""
        except SlurmError as error:
            self.error = str(error).removeprefix("squeue: ")
        return not self.error

    def hurry(self) -> None:
        """Make the next call due immediately."""
        self._due = float("-inf")


def run(command: list[str]) -> str:
    """Run a command and return its standard output; after `TIMEOUT_SECONDS` it is killed with its children.

    Raises:
        SlurmError: the command fails, is missing, or times out.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    except OSError as error:
        raise SlurmError(f"{command[0]}: {error.strerror}; is this a login node of a SLURM cluster?") from None
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise SlurmError(f"{command[0]}: no answer within {TIMEOUT_SECONDS:g} s") from None
    if process.returncode:
        raise SlurmError((errors or output).strip() or f"{command[0]}: exit code {process.returncode}")
    return output


def cancel(ids: Iterable[str]) -> None:
    """Cancel jobs; jobs that have ended already are no error.

    Raises:
        SlurmError: scancel fails three times.
    """
    ids = list(ids)
    for first in range(0, len(ids), 500):
        for attempt in (1, 2, 3):
            try:
                run(["scancel", *ids[first : first + 500]])
                break
            except SlurmError as error:
                if all("Invalid job id" in line for line in str(error).splitlines()):
                    break  # they have ended
                if attempt == 3:
                    raise
                time.sleep(2)


def read_sacct(job: str) -> str:
    """Return the final state of a job from the accounting database; empty without such a database."""
    if shutil.which("sacct") is None:
        return ""
    try:
        words = run(["sacct", "-X", "-n", "-P", "-o", "State", "-j", job]).split()
    except SlurmError:
        return ""
    return words[0] if words else ""


def scontrol_records(kind: str) -> list[dict[str, str]]:
    """Return the records of `scontrol show partition` or `node`, one dict each.

    Raises:
        SlurmError: scontrol fails.
    """
    lines = run(["scontrol", "--oneliner", "show", kind]).splitlines()
    return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines if "=" in line]


def max_array_size() -> int:
    """Return the maximum number of tasks of a job array.

    Raises:
        SlurmError: scontrol fails.
    """
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", run(["scontrol", "show", "config"]))
    return max(1, int(match[1])) if match else 1001


def minutes(text: str) -> int | None:
    """Convert SLURM's `days-hours:minutes:seconds` to minutes, rounded down; None for no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, mins, _ = (int(value or 0) for value in match.groups())
    return (24 * days + hours) * 60 + mins
