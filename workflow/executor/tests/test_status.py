"""Decisions about jobs, and the results and states of one job over time."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from snakemake_executor_plugin_submitit import status
from snakemake_executor_plugin_submitit.ledger import Entry
from snakemake_executor_plugin_submitit.records import Result
from snakemake_executor_plugin_submitit.slurm import FINAL, JobState
from snakemake_executor_plugin_submitit.status import Decision, TrackedJob, decide, log_tail, ran_out_of_memory

ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "A NEW ONE")
DAMAGED = Result(None, "the result file cannot be read")


def state(name: str, reason: str = "None", node: str = "n1") -> JobState:
    return JobState("7", name, reason, node, "N/A", "batch")


def decision(result: Result | None = None, slurm: str | JobState | None = None, **facts: Any) -> Decision:
    """Return the decision about a job whose state is old, with other facts as given."""
    usual = {"result_age": 0.0, "state_age": 1000.0, "answered": True, "missing": 0.0, "patience": 60.0}
    return decide(result, state=state(slurm) if isinstance(slurm, str) else slurm, **(usual | facts))


@pytest.mark.parametrize(
    ("result", "slurm", "facts", "kind"),
    [
        # A successful result decides, whatever SLURM reports.
        (Result(0), None, {}, "success"),
        (Result(0), None, {"answered": False}, "success"),
        (Result(0), "RUNNING", {}, "success"),
        (Result(0), "NODE_FAIL", {}, "success"),
        (Result(0), "OUT_OF_MEMORY", {}, "success"),
        # Another exit code waits until SLURM's state shows whether memory was the reason.
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
        # A damaged result may still become whole.
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
        (None, None, {"missing": 61}, "lost"),
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
def test_decision(result: Result | None, slurm: str | None, facts: dict[str, Any], kind: str) -> None:
    assert decision(result, slurm, **facts).kind == kind


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
        (Result(1, "ValueError: no"), state("FAILED"), "ValueError: no, on n1"),
        (None, state("TIMEOUT"), "its time limit was reached on n1"),
        (None, state("CANCELLED", node=""), "cancelled from outside"),
        (None, state("COMPLETED"), "SLURM reports COMPLETED on n1, but there is no result file"),
        (None, state("OUT_OF_MEMORY"), "out of memory on n1"),
        (None, state("NODE_FAIL"), "SLURM ended it: NODE_FAIL on n1"),
        (None, state("FAILED", "NonZeroExitCode"), "SLURM ended it: FAILED, NonZeroExitCode on n1, without a result"),
        (None, state("DEADLINE"), "SLURM ended it: DEADLINE on n1, without a result"),
    ],
)
def test_the_reason_names_the_event_and_the_node(result: Result | None, slurm: JobState | None, reason: str) -> None:
    assert decision(result, slurm).reason == reason


AGES = st.floats(0, 1e6)
STATES = st.none() | st.sampled_from(sorted(FINAL) + list(ALIVE)).map(state)
RESULTS = st.none() | st.just(DAMAGED) | st.integers(-64, 255).map(Result)


@settings(max_examples=100)
@given(AGES, STATES, AGES, AGES, AGES)
def test_without_an_answer_and_a_result_a_job_waits(
    result_age: float, slurm: JobState | None, state_age: float, missing: float, patience: float
) -> None:
    assert decide(None, result_age, slurm, state_age, False, missing, patience) == Decision("wait")


@settings(max_examples=100)
@given(RESULTS, AGES, STATES, AGES, st.booleans(), AGES, st.floats(1, 600))
def test_every_decision_is_of_a_known_kind_and_has_a_reason(
    result: Result | None, age: float, slurm: JobState | None, state_age: float, answer: bool, gone: float, wait: float
) -> None:
    found = decide(result, age, slurm, state_age, answer, gone, wait)
    assert found.kind in {"wait", "success", "failed", "lost", "memory", "limit", "again"}
    assert (found.kind in {"wait", "success"}) == (found.reason == "")
    assert (found.kind == "success") == (result is not None and result.exit == 0)


@settings(max_examples=100)
@given(AGES, st.sampled_from(ALIVE), AGES)
def test_a_job_that_lives_and_left_no_result_waits(age: float, name: str, seen: float) -> None:
    assert decide(None, age, state(name), seen, True, 0, 60) == Decision("wait")


class Clock:
    """A job that was submitted at 100 s, and a squeue with given answers."""

    def __init__(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.hurries = 100.0, 0
        self.watch = SimpleNamespace(asked=float("-inf"), states={}, hurry=self.hurry)
        monkeypatch.setattr(status, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.entry = Entry("tag", "rule", [], [], "batch", run, "7")
        self.tracked = TrackedJob(SimpleNamespace(), self.entry, submitted=100.0)

    def hurry(self) -> None:
        self.hurries += 1

    def answer(self, asked: float, state: str = "") -> None:
        """Let squeue list the job in a state, or not at all."""
        self.watch.asked = asked
        self.watch.states = {"7": JobState("7", state, "None", "n1", "N/A", "batch")} if state else {}

    def write(self, code: int) -> None:
        self.entry.result.write_text(json.dumps({"exit": code, "reason": ""}))

    def check(self, now: float) -> str:
        self.now = now
        return self.tracked.check(self.watch, 60).kind


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(tmp_path, monkeypatch)


def test_a_result_is_seen_without_squeue(clock: Clock) -> None:
    assert clock.check(101) == "wait"
    clock.write(0)
    assert clock.check(102) == "success" and clock.hurries == 0


def test_a_job_whose_next_submission_is_put_off_waits(clock: Clock) -> None:
    clock.entry.id = None
    clock.answer(1000)
    assert clock.check(2000) == "wait"


def test_an_answer_from_before_the_submission_is_ignored(clock: Clock) -> None:
    clock.answer(99)
    assert clock.check(1000) == "wait"


def test_a_failure_waits_for_an_answer_that_is_asked_for_at_once(clock: Clock) -> None:
    clock.answer(110, "RUNNING")
    clock.write(1)
    assert clock.check(111) == clock.check(112) == "wait" and clock.hurries == 1
    clock.answer(113, "FAILED")
    assert clock.check(114) == "failed"


def test_memory_is_the_reason_by_state_or_log(clock: Clock) -> None:
    clock.write(1)
    assert clock.check(101) == "wait"
    clock.answer(102, "OUT_OF_MEMORY")
    assert clock.check(103) == "memory"
    clock.answer(104, "FAILED")
    assert clock.check(105) == "failed"
    clock.entry.log("err").write_text("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.\n")
    assert clock.check(106) == "memory"


def test_a_job_is_lost_when_answers_do_not_list_it_for_long(clock: Clock) -> None:
    clock.answer(110)
    assert clock.check(111) == "wait"
    clock.answer(150)
    assert clock.check(151) == "wait"
    clock.answer(180)
    assert clock.check(181) == "lost"


def test_a_squeue_that_stops_answering_loses_no_job(clock: Clock) -> None:
    clock.answer(110)
    assert clock.check(111) == clock.check(10_000) == "wait"


def test_a_job_that_is_listed_again_is_not_lost(clock: Clock) -> None:
    clock.answer(110)
    assert clock.check(111) == "wait"
    clock.answer(150, "RUNNING")
    assert clock.check(151) == "wait"
    clock.answer(190)
    assert clock.check(191) == "wait"


def test_a_state_that_ends_a_job_has_a_moment_for_the_result(clock: Clock) -> None:
    clock.answer(110, "NODE_FAIL")
    assert clock.check(111) == "wait"
    clock.answer(117, "NODE_FAIL")
    assert clock.check(118) == "again"


def test_a_damaged_result_may_become_whole(clock: Clock) -> None:
    clock.entry.result.write_bytes(b"half of")
    assert clock.check(101) == clock.check(150) == "wait"
    clock.write(0)
    assert clock.check(151) == "success"


def test_a_new_submission_begins_anew(clock: Clock) -> None:
    clock.answer(110, "OUT_OF_MEMORY")
    assert clock.check(111) == "wait" and clock.check(120) == "memory"
    clock.tracked.entry = Entry("tag", "rule", [], [], "second", clock.entry.run, "8")
    clock.tracked.restart()
    assert clock.check(121) == "wait" and clock.tracked.state is None


def test_the_end_of_the_first_log_with_content(tmp_path: Path) -> None:
    entry = Entry("tag", "rule", [], [str(tmp_path / "own")], "batch", tmp_path, "7")
    assert log_tail(entry, False) == ""
    entry.log("out").write_text("printed\n")
    assert log_tail(entry, False) == f"\nThe end of {entry.log('out')}:\n    printed\n"
    entry.log("err").write_bytes(b"an error \xff\n")
    assert "    an error" in log_tail(entry, True)
    (tmp_path / "own").write_text("".join(f"line {i}\n" for i in range(100)))
    assert log_tail(entry, False).count("line") == status.TAIL_LINES and "line 99" in log_tail(entry, False)
    assert log_tail(entry, True) == ""


def test_a_log_that_cannot_be_read_has_no_end(tmp_path: Path) -> None:
    entry = Entry("tag", "rule", [], [str(tmp_path)], "batch", tmp_path, "7")  # a folder has a size
    entry.log("err").write_text("an error\n")
    assert "    an error" in log_tail(entry, False)


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
