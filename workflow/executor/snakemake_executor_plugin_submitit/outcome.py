"""Outcome of a job, from its result file first and from SLURM's state second."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from snakemake_executor_plugin_submitit.records import check_fields, is_exit_code, is_text, parse_json
from snakemake_executor_plugin_submitit.slurm import JobState

# Seconds that a result file may take to appear on the login node after the job's end.
FINAL_GRACE = 5.0
# Bytes of a result file, at most: it holds an exit code and one line.
_LONGEST_RESULT = 100_000
# Messages of slurmstepd in a job's log; the job's state does not always show OUT_OF_MEMORY.
_MEMORY_WORDS = re.compile(r"^slurmstepd.*(exceeded (job )?memory limit|oom[_-]kill)", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class Result:
    """Content of a result file.

    Attributes:
        exit: exit code of the job's command, or None if the file is damaged.
        reason: reason for a failure, else empty.
        damaged: true if the file cannot be parsed.
    """

    exit: int | None
    reason: str = ""
    damaged: bool = False


def read_result(path: Path) -> Result | None:
    """Return the result of the job, or None while the file is missing.

    Raises:
        OSError: the filesystem does not answer.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_RESULT)
    except FileNotFoundError:
        return None
    try:
        value = check_fields(parse_json(content), {"exit": is_exit_code, "reason": is_text})
    except ValueError as error:
        return Result(None, f"the result file {path} cannot be read ({error})", damaged=True)
    return Result(value["exit"], value["reason"])


def ran_out_of_memory(log: Path) -> bool:
    """Return whether a job's log contains an out-of-memory message of SLURM's daemon."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 10_000))
            return bool(_MEMORY_WORDS.search(file.read().decode(errors="replace")))
    except OSError:
        return False


@dataclass(frozen=True)
class Verdict:
    """Decision about a job.

    Attributes:
        kind: `wait`, `success`, `failed`, `memory` (submit again with more), `limit` (submit again if it is
            resumable) or `again` (submit again as it was).
        reason: explanation for the user.
    """

    kind: str
    reason: str = ""


WAIT = Verdict("wait")


def judge(
    result: Result | None,
    result_age: float,
    state: JobState | None,
    state_age: float,
    answered: bool,
    missing: float,
    patience: float,
) -> Verdict:
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
    if result is not None and not result.damaged:
        if result.exit == 0:
            return Verdict("success")
        # The exit code does not reveal an out-of-memory kill; only SLURM's final state does.
        if (not answered or (state is not None and state.alive)) and result_age < patience:
            return WAIT
        if state is not None and state.state == "OUT_OF_MEMORY":
            return Verdict("memory", "out of memory")
        words = result.reason or f"exit code {result.exit}"
        return Verdict("failed", f"{words}, on {state.node}" if state is not None and state.node else words)
    if result is not None and result_age > patience:
        return Verdict("failed", result.reason)
    if not answered:
        return WAIT
    if state is None:
        return Verdict("failed", "SLURM no longer knows the job and it left no result") if missing > patience else WAIT
    if state.alive:
        return WAIT
    if state.state == "COMPLETED" and (result is not None or state_age < patience):
        return WAIT
    if state_age < FINAL_GRACE:
        return WAIT
    return _final(state)


def _final(state: JobState) -> Verdict:
    where = f" on {state.node}" if state.node else ""
    match state.state:
        case "OUT_OF_MEMORY":
            return Verdict("memory", f"out of memory{where}")
        case "NODE_FAIL" | "BOOT_FAIL" | "PREEMPTED" | "REVOKED":
            return Verdict("again", f"SLURM ended it: {state.state}{where}")
        case "TIMEOUT":
            return Verdict("limit", f"its time limit was reached{where}; raise `runtime`")
        case "CANCELLED":
            return Verdict("failed", f"cancelled from outside{where}")
        case "COMPLETED":
            return Verdict("failed", f"SLURM says COMPLETED{where}, but there is no result file")
    detail = f", {state.reason}" if state.reason not in ("None", "") else ""
    return Verdict("failed", f"SLURM ended it: {state.state}{detail}{where}, without a result")
