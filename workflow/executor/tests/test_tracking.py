"""What is made of the results and states of one job, as time goes by."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_executor_plugin_submitit import tracking
from snakemake_executor_plugin_submitit.history import Entry
from snakemake_executor_plugin_submitit.slurm import JobState
from snakemake_executor_plugin_submitit.tracking import Tracked, make_entry, tail


class Clock:
    """A job that was submitted at 100 s, and a squeue whose answers are set."""

    def __init__(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.hurries = 100.0, 0
        self.watch = SimpleNamespace(asked=float("-inf"), states={}, hurry=self.hurry)
        monkeypatch.setattr(tracking, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.entry = Entry("tag", "rule", [], [], "batch", 0, run, "7")
        self.tracked = Tracked(self.entry, submitted=100.0)

    def hurry(self) -> None:
        self.hurries += 1

    def answer(self, asked: float, state: str = "") -> None:
        """squeue lists the job in a state, or not at all."""
        self.watch.asked = asked
        self.watch.states = {"7": JobState("7", state, "None", "n1", "N/A", "batch")} if state else {}

    def write(self, code: int) -> None:
        self.entry.result.write_text(json.dumps({"exit": code, "reason": ""}))

    def look(self, now: float) -> str:
        self.now = now
        return self.tracked.look(self.watch, 60).kind


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(tmp_path, monkeypatch)


def test_a_result_is_seen_without_squeue(clock: Clock) -> None:
    assert clock.look(101) == "wait"
    clock.write(0)
    assert clock.look(102) == "success" and clock.hurries == 0


def test_a_job_whose_next_submission_is_put_off_waits(clock: Clock) -> None:
    clock.entry.id = None
    clock.answer(1000)
    assert clock.look(2000) == "wait"


def test_an_answer_from_before_the_submission_says_nothing(clock: Clock) -> None:
    clock.answer(99)
    assert clock.look(1000) == "wait"


def test_a_failure_waits_for_an_answer_that_is_asked_for_at_once(clock: Clock) -> None:
    clock.answer(110, "RUNNING")
    clock.write(1)
    assert clock.look(111) == clock.look(112) == "wait" and clock.hurries == 1
    clock.answer(113, "FAILED")
    assert clock.look(114) == "failed"


def test_memory_is_the_reason_by_state_or_log(clock: Clock) -> None:
    clock.write(1)
    assert clock.look(101) == "wait"
    clock.answer(102, "OUT_OF_MEMORY")
    assert clock.look(103) == "memory"
    clock.answer(104, "FAILED")
    assert clock.look(105) == "failed"
    clock.entry.log("err").write_text("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.\n")
    assert clock.look(106) == "memory"


def test_a_job_is_lost_when_answers_do_not_list_it_for_long(clock: Clock) -> None:
    clock.answer(110)
    assert clock.look(111) == "wait"
    clock.answer(150)
    assert clock.look(151) == "wait"
    clock.answer(180)
    assert clock.look(181) == "failed"


def test_a_squeue_that_stops_answering_loses_no_job(clock: Clock) -> None:
    clock.answer(110)
    assert clock.look(111) == clock.look(10_000) == "wait"


def test_a_job_that_is_listed_again_is_not_lost(clock: Clock) -> None:
    clock.answer(110)
    assert clock.look(111) == "wait"
    clock.answer(150, "RUNNING")
    assert clock.look(151) == "wait"
    clock.answer(190)
    assert clock.look(191) == "wait"


def test_a_state_that_ends_a_job_has_a_moment_for_the_result(clock: Clock) -> None:
    clock.answer(110, "NODE_FAIL")
    assert clock.look(111) == "wait"
    clock.answer(117, "NODE_FAIL")
    assert clock.look(118) == "again"


def test_a_damaged_result_may_become_whole(clock: Clock) -> None:
    clock.entry.result.write_bytes(b"half of")
    assert clock.look(101) == clock.look(150) == "wait"
    clock.write(0)
    assert clock.look(151) == "success"


def test_a_new_submission_begins_anew(clock: Clock) -> None:
    clock.answer(110, "OUT_OF_MEMORY")
    assert clock.look(111) == "wait" and clock.look(120) == "memory"
    clock.tracked.entry = Entry("tag", "rule", [], [], "second", 0, clock.entry.run, "8")
    clock.tracked.restart()
    assert clock.look(121) == "wait" and clock.tracked.state is None


def make_job(folder: Path, **changes: Any) -> Any:
    """A job of Snakemake, as far as an entry looks at it."""
    parts = {"x": "1", "alpha": 2, "output": "out", "input": "in"} | changes
    return SimpleNamespace(
        name="rule",
        rule=SimpleNamespace(name="rule"),
        wildcards_dict={"x": parts["x"]},
        params={"alpha": parts["alpha"]},
        output=[parts["output"]],
        input=[folder / parts["input"]],
        log=["log"],
        is_group=lambda: False,
    )


def test_an_entry_of_a_job(tmp_path: Path) -> None:
    entry = make_entry(make_job(tmp_path), tmp_path)
    assert (entry.rule, entry.wildcards, entry.outputs, entry.logs) == ("rule", {"x": "1"}, ["out"], ["log"])
    assert (entry.run, entry.id, entry.outcome) == (tmp_path, None, None)


@pytest.mark.parametrize("change", [{"x": "2"}, {"alpha": 3}, {"output": "other"}, {"input": "another"}])
def test_a_tag_changes_with_what_the_job_is_made_of(change: dict[str, Any], tmp_path: Path) -> None:
    tag = make_entry(make_job(tmp_path), tmp_path).tag
    assert make_entry(make_job(tmp_path), tmp_path / "elsewhere").tag == tag
    assert make_entry(make_job(tmp_path, **change), tmp_path).tag != tag


def test_a_tag_changes_with_an_input(tmp_path: Path) -> None:
    tags = [make_entry(make_job(tmp_path), tmp_path).tag]
    (tmp_path / "in").touch()
    for seconds in (1, 2):
        os.utime(tmp_path / "in", (seconds, seconds))
        tags.append(make_entry(make_job(tmp_path), tmp_path).tag)
    assert len(set(tags)) == 3


def test_a_group_is_one_entry(tmp_path: Path) -> None:
    jobs = [make_job(tmp_path, output="a"), make_job(tmp_path, output="b")]
    entry = make_entry(SimpleNamespace(name="group", jobs=jobs, is_group=lambda: True), tmp_path)
    assert (entry.rule, entry.outputs, entry.logs) == ("group", ["a", "b"], ["log", "log"])


def test_the_end_of_the_first_log_that_says_something(tmp_path: Path) -> None:
    entry = Entry("tag", "rule", [], [str(tmp_path / "own")], "batch", 0, tmp_path, "7")
    assert tail(entry, False) == ""
    entry.log("out").write_text("printed\n")
    assert tail(entry, False) == f"\nThe end of {entry.log('out')}:\n    printed\n"
    entry.log("err").write_bytes(b"an error \xff\n")
    assert "    an error" in tail(entry, True)
    (tmp_path / "own").write_text("".join(f"line {i}\n" for i in range(100)))
    assert tail(entry, False).count("line") == tracking.TAIL_LINES and "line 99" in tail(entry, False)
    assert tail(entry, True) == ""


def test_a_log_that_cannot_be_read_has_no_end(tmp_path: Path) -> None:
    entry = Entry("tag", "rule", [], [str(tmp_path)], "batch", 0, tmp_path, "7")  # a folder has a size
    entry.log("err").write_text("an error\n")
    assert "    an error" in tail(entry, False)
