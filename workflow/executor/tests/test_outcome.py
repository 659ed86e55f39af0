"""Verdicts about jobs, case by case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from snakemake_executor_plugin_submitit.outcome import Result, Verdict, judge, ran_out_of_memory, read_result
from snakemake_executor_plugin_submitit.slurm import FINAL, JobState

ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "A NEW ONE")
DAMAGED = Result(None, "the result file cannot be read", damaged=True)


def state(name: str, reason: str = "None", node: str = "n1") -> JobState:
    return JobState("7", name, reason, node, "N/A", "batch")


def verdict(result: Result | None = None, slurm: str | JobState | None = None, **facts: Any) -> Verdict:
    """Of a job that squeue answered about long ago, unless the facts are others."""
    usual = {"result_age": 0.0, "state_age": 1000.0, "answered": True, "missing": 0.0, "patience": 60.0}
    return judge(result, state=state(slurm) if isinstance(slurm, str) else slurm, **(usual | facts))


@pytest.mark.parametrize(
    ("result", "slurm", "facts", "kind"),
    [
        # A result that says success is believed, whatever SLURM says.
        (Result(0), None, {}, "success"),
        (Result(0), None, {"answered": False}, "success"),
        (Result(0), "RUNNING", {}, "success"),
        (Result(0), "NODE_FAIL", {}, "success"),
        (Result(0), "OUT_OF_MEMORY", {}, "success"),
        # Another exit code waits until SLURM has said whether memory was the reason.
        (Result(1), None, {"answered": False}, "wait"),
        (Result(1), None, {"answered": False, "result_age": 61}, "failed"),
        (Result(1), "OUT_OF_MEMORY", {}, "memory"),
        (Result(-9), "OUT_OF_MEMORY", {"state_age": 0}, "memory"),
        (Result(1), "COMPLETING", {}, "wait"),
        (Result(1), "RUNNING", {}, "wait"),
        (Result(1), "RUNNING", {"result_age": 61}, "failed"),
        (Result(1), "FAILED", {}, "failed"),
        (Result(1), "COMPLETED", {}, "failed"),
        (Result(1), None, {}, "failed"),
        (Result(75), "TIMEOUT", {}, "failed"),
        # A damaged result may still be on its way.
        (DAMAGED, None, {"answered": False}, "wait"),
        (DAMAGED, "COMPLETED", {"state_age": 0}, "wait"),
        (DAMAGED, "COMPLETED", {"state_age": 61, "result_age": 10}, "wait"),
        (DAMAGED, "RUNNING", {}, "wait"),
        (DAMAGED, "RUNNING", {"result_age": 61}, "failed"),
        (DAMAGED, None, {"result_age": 61, "answered": False}, "failed"),
        (DAMAGED, "OUT_OF_MEMORY", {}, "memory"),
        # No result: SLURM's state decides.
        (None, None, {"answered": False}, "wait"),
        (None, None, {"missing": 59}, "wait"),
        (None, None, {"missing": 61}, "failed"),
        (None, "COMPLETED", {"state_age": 59}, "wait"),
        (None, "COMPLETED", {"state_age": 61}, "failed"),
        (None, "FAILED", {"state_age": 1}, "wait"),
        (None, "FAILED", {"state_age": 6}, "failed"),
        (None, "TIMEOUT", {}, "limit"),
        (None, "CANCELLED", {}, "failed"),
        (None, "DEADLINE", {}, "failed"),
        (None, "OUT_OF_MEMORY", {}, "memory"),
        (None, "OUT_OF_MEMORY", {"state_age": 1}, "wait"),
        (None, "NODE_FAIL", {}, "again"),
        (None, "BOOT_FAIL", {}, "again"),
        (None, "PREEMPTED", {}, "again"),
        (None, "REVOKED", {}, "again"),
        (None, "PREEMPTED", {"state_age": 1}, "wait"),
        *[(None, name, {}, "wait") for name in ALIVE],
    ],
)
def test_verdict(result: Result | None, slurm: str | None, facts: dict[str, Any], kind: str) -> None:
    assert verdict(result, slurm, **facts).kind == kind


@pytest.mark.parametrize(
    ("result", "slurm", "reason"),
    [
        (Result(3), None, "exit code 3"),
        (Result(3), state("FAILED", node=""), "exit code 3"),
        (Result(3), state("FAILED"), "exit code 3, on n1"),
        (
            Result(75, "its time limit was reached 3 times"),
            state("COMPLETED"),
            "its time limit was reached 3 times, on n1",
        ),
        (Result(None, "ValueError: no"), state("FAILED"), "ValueError: no, on n1"),
        (None, state("TIMEOUT"), "its time limit was reached on n1; raise `runtime`"),
        (None, state("CANCELLED", node=""), "cancelled from outside"),
        (None, state("COMPLETED"), "SLURM says COMPLETED on n1, but there is no result file"),
        (None, state("OUT_OF_MEMORY"), "out of memory on n1"),
        (None, state("NODE_FAIL"), "SLURM ended it: NODE_FAIL on n1"),
        (None, state("FAILED", "NonZeroExitCode"), "SLURM ended it: FAILED, NonZeroExitCode on n1, without a result"),
        (None, state("DEADLINE"), "SLURM ended it: DEADLINE on n1, without a result"),
    ],
)
def test_the_reason_says_what_happened_and_where(result: Result | None, slurm: JobState | None, reason: str) -> None:
    assert verdict(result, slurm).reason == reason


AGES = st.floats(0, 1e6)
STATES = st.none() | st.sampled_from(sorted(FINAL) + list(ALIVE)).map(state)
RESULTS = st.none() | st.just(DAMAGED) | st.integers(-64, 255).map(Result)


@settings(max_examples=100)
@given(AGES, STATES, AGES, AGES, AGES)
def test_without_an_answer_and_a_result_a_job_waits(
    result_age: float, slurm: JobState | None, state_age: float, missing: float, patience: float
) -> None:
    assert judge(None, result_age, slurm, state_age, False, missing, patience) == Verdict("wait")


@settings(max_examples=100)
@given(RESULTS, AGES, STATES, AGES, st.booleans(), AGES, st.floats(1, 600))
def test_every_verdict_is_one_of_five_and_says_why(
    result: Result | None, age: float, slurm: JobState | None, state_age: float, answer: bool, gone: float, wait: float
) -> None:
    found = judge(result, age, slurm, state_age, answer, gone, wait)
    assert found.kind in {"wait", "success", "failed", "memory", "again"}
    assert (found.kind in {"wait", "success"}) == (found.reason == "")
    assert (found.kind == "success") == (result is not None and result.exit == 0)


@settings(max_examples=100)
@given(AGES, st.sampled_from(ALIVE), AGES)
def test_a_job_that_lives_and_left_no_result_waits(age: float, name: str, seen: float) -> None:
    assert judge(None, age, state(name), seen, True, 0, 60) == Verdict("wait")


def write(path: Path, code: int, reason: str = "") -> Path:
    path.write_text(json.dumps({"exit": code, "reason": reason}))
    return path


def test_results_are_read(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    assert read_result(path) is None
    assert read_result(write(path, 0)) == Result(0)
    assert read_result(write(path, 2, "why \u00e9")) == Result(2, "why \u00e9")
    assert read_result(write(path, -9)) == Result(-9)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b'{"exit": 0, "reason": "',
        b"\0" * 30,
        b"\x80\x04\x95.",
        b"{}",
        b"0",
        b"null",
        b'{"exit": 0}',
        b'{"exit": "0", "reason": ""}',
        b'{"exit": 0.0, "reason": ""}',
        b'{"exit": false, "reason": ""}',
        b'{"exit": null, "reason": ""}',
        b'{"exit": NaN, "reason": ""}',
        b'{"exit": 1000, "reason": ""}',
        b'{"exit": 0, "reason": null}',
        b'{"exit": 0, "reason": "\\ud800"}',
        b'{"exit": 0, "reason": "\xff"}',
        b'{"exit": 0, "reason": "' + b" " * 100_000 + b'"}',
        b"[" * 90_000,
        b'{"exit": ' + b"1" * 5000 + b', "reason": ""}',
    ],
)
def test_a_result_that_cannot_be_read_is_damaged(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    result = read_result(path)
    assert result.damaged and result.exit is None
    assert f"the result file {path} cannot be read (" in result.reason and "\n" not in result.reason


def test_a_filesystem_that_is_away_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        read_result(tmp_path)  # a folder stands for what cannot be read


@pytest.mark.parametrize(
    ("log", "memory"),
    [
        (
            "slurmstepd: error: Detected 1 oom_kill event in StepId=5.0. Some of the step tasks have been OOM Killed.",
            True,
        ),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=5.batch. Some of your processes may", True),
        ("a\nslurmstepd: error: Job 5 exceeded memory limit (2048 > 1024), being killed\nb", True),
        ("slurmstepd: error: Step 5.0 exceeded memory limit (2048 > 1024), being killed", True),
        ("slurmstepd-n1: error: StepId=5.0 exceeded memory limit (2048 > 1024), being killed", True),
        ("slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***", False),
        ("a rule prints: slurmstepd says oom_kill when memory is short", False),
        ("torch.OutOfMemoryError: CUDA out of memory.", False),
        ("", False),
    ],
)
def test_memory_in_the_log(log: str, memory: bool, tmp_path: Path) -> None:
    path = tmp_path / "err"
    path.write_text(log)
    assert ran_out_of_memory(path) is memory


def test_only_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "err"
    assert not ran_out_of_memory(path)
    words = "slurmstepd: error: Detected 1 oom_kill event in StepId=5.0.\n"
    path.write_bytes(b"\xff" * 20_000 + b"\n" + words.encode())
    assert ran_out_of_memory(path)
    path.write_bytes(words.encode() + b"x" * 20_000)
    assert not ran_out_of_memory(path)
