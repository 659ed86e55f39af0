"""SLURM's commands: what is asked of the controller, and what its answers mean."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass

# A job in one of these will not run on; in any other it still may.
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
# Job or array task, state, reason, nodes, start, comment; the comment last, it may hold anything.
_FORMAT = "%i|%T|%r|%N|%S|%k"
# Words of a controller that is away or busy; a refusal has others.
_TRANSIENT = re.compile(
    r"unable to contact slurm controller|socket timed out|connection (refused|timed out|reset)|no route to host"
    r"|communication failure|transport endpoint|zero bytes were transmitted|unexpected message received"
    r"|resource temporarily unavailable|unable to create job record|requested nodes are busy|rate limit exceeded"
    r"|in standby mode|protocol authentication error|munge (en|de)code failed"
    r"|failed to fetch config|could not establish a configuration source",
    re.IGNORECASE,
)


class SlurmError(RuntimeError):
    """A command of SLURM failed; the text is its own."""


def is_transient(words: str) -> bool:
    """Whether sbatch's words mean that it can be tried again; a site's own words beside its reason do not count."""
    reasons = re.findall(r"submission failed: (.*)", words)
    return bool(_TRANSIENT.search(reasons[-1] if reasons else words))


@dataclass(frozen=True)
class JobState:
    """A line of squeue.

    Attributes:
        id: `123` or `123_4`.
        state: SLURM's long name, such as `RUNNING`.
        reason: why it is pending, or how it ended.
        node: where it runs.
        start: when it started, or is expected to, in SLURM's words.
        comment: the batch that it was submitted in.
    """

    id: str
    state: str
    reason: str
    node: str
    start: str
    comment: str

    @property
    def alive(self) -> bool:
        """Whether it may still run."""
        return self.state not in FINAL


def squeue_command() -> list[str]:
    """One line for each job and array task of this user, ended ones included while SLURM knows them."""
    return ["squeue", "--me", "--array", "--states=all", "--noheader", f"--format={_FORMAT}"]


def parse_squeue(text: str) -> dict[str, JobState]:
    """Job id -> state."""
    states = {}
    for line in text.splitlines():
        job, *values = line.split("|", 5)
        if len(values) == 5:
            states[job] = JobState(job, *values)
    return states


def read_squeue() -> dict[str, JobState]:
    """All jobs of this user.

    Raises:
        SlurmError: squeue fails or does not answer.
    """
    return parse_squeue(run(squeue_command()))


class QueueWatch:
    """Calls squeue once an interval, in the background: a controller that hangs holds nothing up.

    Attributes:
        states: job id -> state, by the last answer.
        asked: monotonic time when that answer was asked for; minus infinity before the first.
        error: words of the last call, empty when it succeeded.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.states: dict[str, JobState] = {}
        self.asked = float("-inf")
        self.error = ""
        self._started = self._due = float("-inf")
        self._process: subprocess.Popen | None = None

    def poll(self) -> bool:
        """Start a call when one is due and take its answer when it is there; True for a new answer."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._due:
                self._start(now)
            return False
        if self._process.poll() is None:
            if now - self._started > TIMEOUT_SECONDS:
                self.close()
                self.error = f"no answer within {TIMEOUT_SECONDS} s"
            return False
        return self._collect()

    def hurry(self) -> None:
        """Make the next call due now."""
        self._due = float("-inf")

    def close(self) -> None:
        """End a call that is under way."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _start(self, now: float) -> None:
        # Files, not pipes: the answer about thousands of jobs would fill a pipe that nobody reads yet.
        self._output, self._errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self._started, self._due = now, now + self.interval
        try:
            self._process = subprocess.Popen(
                squeue_command(),
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._errors,
                start_new_session=True,
            )
        except OSError as error:
            self.error = str(error)

    def _collect(self) -> bool:
        code, self._process = self._process.returncode, None
        self._output.seek(0)
        self._errors.seek(0)
        if code:
            self.error = self._errors.read().decode(errors="replace").strip() or f"exit code {code}"
            return False
        text = self._output.read().decode(errors="replace")
        self.states, self.asked, self.error = parse_squeue(text), self._started, ""
        return True


def run(command: list[str], timeout: float = TIMEOUT_SECONDS) -> str:
    """Standard output of a command.

    Raises:
        SlurmError: it fails, is not there, or does not answer in time.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise SlurmError(f"{command[0]}: no such command; is this a login node of a SLURM cluster?") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]}: no answer within {timeout:g} s") from None
    if done.returncode:
        raise SlurmError((done.stderr or done.stdout).strip() or f"{command[0]}: exit code {done.returncode}")
    return done.stdout


def cancel(ids: Iterable[str]) -> None:
    """Cancel jobs; those that are over already are no error.

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
                    break  # they are over
                if attempt == 3:
                    raise
                time.sleep(2)


def read_sacct(ids: list[str]) -> dict[str, str]:
    """Job id -> final state by the accounting database; empty where there is none."""
    if not ids or shutil.which("sacct") is None:
        return {}
    try:
        text = run(["sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(ids)])
    except SlurmError:
        return {}
    rows = [line.split("|") for line in text.splitlines() if "|" in line]
    return {row[0]: row[1].split()[0] for row in rows if row[1]}


def scontrol_records(kind: str) -> list[dict[str, str]]:
    """`scontrol show partition` or `node` as one dict a record.

    Raises:
        SlurmError: scontrol fails.
    """
    lines = run(["scontrol", "--oneliner", "show", kind]).splitlines()
    return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines if "=" in line]


def max_array_size() -> int:
    """How many tasks an array can have.

    Raises:
        SlurmError: scontrol fails.
    """
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", run(["scontrol", "show", "config"]))
    return max(1, int(match[1])) if match else 1001


def minutes(text: str) -> int | None:
    """SLURM's `days-hours:minutes:seconds` in minutes, rounded down; None for no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, mins, _ = (int(value or 0) for value in match.groups())
    return (24 * days + hours) * 60 + mins
