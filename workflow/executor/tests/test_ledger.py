"""Writing and reading of ledgers, whole and damaged."""

from __future__ import annotations

import errno
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_executor_plugin_submitit import ledger as module
from snakemake_executor_plugin_submitit.ledger import KEPT_RUNS, Entry, History, Ledger, make_entry
from snakemake_interface_common.exceptions import WorkflowError


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the waits for the disk."""
    monkeypatch.setattr(module.os, "fsync", lambda _: None)


def entry(tag: str, run: Path = Path()) -> Entry:
    return Entry(tag, "rule", [f"{tag}.out"], [f"{tag}.log"], "", run)


def put(ledger: Ledger, batch: str, tags: str, ids: list[str] | None = None) -> list[Entry]:
    """Record a batch of one job per letter, accepted if there are ids, and return the entries as read from disk."""
    ledger.submit(batch, [entry(tag) for tag in tags])
    if ids:
        ledger.accept(batch, ids)
    found = History(ledger.run.parent).entries
    return [found[tag] for tag in tags]


def close(ledger: Ledger) -> None:
    """Release the lock, as the end of the Snakemake process does."""
    ledger._file.close()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "new" / "folder")
    before = time.time()
    a, b = put(ledger, "batch", "ab", ["7_0", "7_1"])
    assert (a.tag, a.rule, a.outputs, a.logs) == ("a", "rule", ["a.out"], ["a.log"])
    assert (a.batch, a.run, a.id) == ("batch", ledger.run, "7_0")
    assert (b.id, b.outcome) == ("7_1", None)
    assert abs(a.submitted - before) < 10
    assert (a.result, b.log("out")) == (ledger.run / "7_0_0_result.json", ledger.run / "7_1_0_log.out")
    assert (b.log(), a.events) == (ledger.run / "7_1_0_log.err", ledger.run / "a_events.jsonl")


def test_a_batch_that_was_never_accepted_has_no_id(tmp_path: Path) -> None:
    assert [part.id for part in put(Ledger(tmp_path), "batch", "ab")] == [None, None]


def test_an_end_is_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    a, b, c = put(ledger, "batch", "abc", ["7_0", "7_1", "7_2"])
    ledger.end(a, "success")
    ledger.end(b, "failed", "exit code 1\non n1")
    assert (a.outcome, b.outcome, b.reason) == ("success", "failed", "exit code 1\non n1")
    found = History(tmp_path).entries
    assert found == {"a": a, "b": b, "c": c}


def test_a_refused_batch_ends_without_an_id(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    (a,) = put(ledger, "batch", "a")
    ledger.end(a, "failed", "sbatch: error: no")
    assert History(tmp_path).entries["a"].outcome == "failed"


def test_the_newest_submission_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    (old,) = put(ledger, "first", "a", ["7"])
    ledger.end(old, "failed", "out of memory")
    (new,) = put(ledger, "second", "a", ["8"])
    assert (new.id, new.batch, new.outcome, new.reason) == ("8", "second", None, "")
    ledger.end(old, "failed", "too late")  # of the job that came before
    assert History(tmp_path).entries["a"].outcome is None
    ledger.end(new, "success")
    assert History(tmp_path).entries["a"].outcome == "success"


def test_halves_of_a_refused_array_take_its_place(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    put(ledger, "whole", "abcd")
    put(ledger, "left", "ab", ["8_0", "8_1"])
    put(ledger, "right", "cd", ["9_0", "9_1"])
    assert [part.id for part in History(tmp_path).entries.values()] == ["8_0", "8_1", "9_0", "9_1"]


def test_runs_are_read_in_order_independent_of_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for clock, job in ((2000.0, "7"), (1000.0, "8"), (0.0, "9")):
        monkeypatch.setattr(module.time, "time", lambda clock=clock: clock)
        put(Ledger(tmp_path), f"batch-{job}", "a", [job])
    found = History(tmp_path).entries["a"]
    assert (found.id, found.run.name, found.submitted) == ("9", "000003", 0.0)


def test_a_run_sorts_after_all_others(tmp_path: Path) -> None:
    for name in ("000009", "000010", "000099"):
        (tmp_path / name).mkdir()
    assert [Ledger(tmp_path).run.name for _ in range(2)] == ["000100", "000101"]


def test_other_folders_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "2026-old").mkdir()
    (tmp_path / "7").touch()
    ledger = Ledger(tmp_path)
    assert ledger.run.name == "000001" and History(tmp_path).entries == {}


def test_a_run_is_private(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        assert Ledger(tmp_path).run.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(mask)


def test_runs_that_start_together_have_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Ledger(tmp_path), range(8)))
    assert sorted(ledger.run.name for ledger in made) == [f"{i:06d}" for i in range(1, 9)]


def test_jobs_of_an_ended_run_are_orphaned(tmp_path: Path) -> None:
    first = Ledger(tmp_path)
    a, b = put(first, "batch", "ab", ["7_0", "7_1"])
    first.end(a, "success")
    close(first)
    second = Ledger(tmp_path)
    assert (second.orphaned, second.foreign) == ([b], [])


def test_jobs_of_a_running_snakemake_are_foreign(tmp_path: Path) -> None:
    first = Ledger(tmp_path)
    (a,) = put(first, "batch", "a", ["7"])
    second = Ledger(tmp_path)
    assert (second.orphaned, second.foreign) == ([], [a])


def test_an_adopted_job_ends_in_the_ledger_of_the_new_run(tmp_path: Path) -> None:
    first = Ledger(tmp_path)
    put(first, "batch", "ab", ["7_0", "7_1"])
    close(first)
    second = Ledger(tmp_path)
    a, b = second.orphaned
    second.adopt(a)
    second.adopt(b)
    assert all(part.outcome is None for part in History(tmp_path).entries.values())
    second.end(a, "success")
    close(second)
    third = Ledger(tmp_path)
    assert [(part.id, part.run) for part in third.orphaned] == [(b.id, first.run)]
    assert History(tmp_path).entries["a"].outcome == "success"


def test_a_job_that_a_running_snakemake_adopted_is_foreign(tmp_path: Path) -> None:
    first = Ledger(tmp_path)
    put(first, "batch", "a", ["7"])
    close(first)
    second = Ledger(tmp_path)
    second.adopt(second.orphaned[0])
    third = Ledger(tmp_path)
    assert (third.orphaned, [part.id for part in third.foreign]) == ([], ["7"])


def test_a_filesystem_without_locks_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(module.fcntl, "flock", no_locks)
    (a,) = put(Ledger(tmp_path), "batch", "a", ["7"])
    assert Ledger(tmp_path).orphaned == [a]


def test_a_ledger_may_be_cut_off_anywhere(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    a, *_ = put(ledger, "batch", "äb", ["7_0", "7_1"])
    ledger.end(a, "failed", "it | fails\nbadly")
    close(ledger)
    path = ledger.run / "ledger.jsonl"
    whole = path.read_bytes()

    def read(length: int) -> dict[str, Entry]:
        path.write_bytes(whole[:length])
        return History(tmp_path).entries

    at_ends = [read(end) for end in [0, *(i + 1 for i, byte in enumerate(whole) if byte == ord("\n"))]]
    assert [part.get("ä") and (part["ä"].id, part["ä"].outcome) for part in at_ends] == [
        None,
        (None, None),
        ("7_0", None),
        ("7_0", "failed"),
    ]
    for cut in range(1, len(whole), 5):
        assert whole[cut:].startswith(b"\n") or read(cut) == at_ends[whole[:cut].count(b"\n")]


def test_zeros_at_the_end_and_lost_lines_are_passed_over(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    put(ledger, "one", "a", ["7"])
    put(ledger, "two", "b", ["8"])
    path = ledger.run / "ledger.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([first[:20], *others, "\0" * 40]))
    assert list(History(tmp_path).entries) == ["b"]


def test_no_text_in_a_ledger_breaks_a_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    (a,) = put(ledger, "batch", "a", ["7"])
    reason = "".join(map(chr, range(0x250))) + "\u2028\u2029\U0001f600"
    ledger.end(a, "failed", reason)
    assert History(tmp_path).entries["a"].reason == reason


def test_old_runs_are_cleaned_away_and_open_ones_kept(tmp_path: Path) -> None:
    for number in range(KEPT_RUNS + 5):
        ledger = Ledger(tmp_path)
        (part,) = put(ledger, f"batch-{number}", chr(ord("a") + number), [str(number)])
        if number != 2:
            ledger.end(part, "success")
        close(ledger)
    Ledger(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["000003", *(f"{i:06d}" for i in range(6, KEPT_RUNS + 7))]


def test_a_run_whose_job_ended_later_is_cleaned_away(tmp_path: Path) -> None:
    first = Ledger(tmp_path)
    put(first, "batch", "a", ["7"])
    close(first)
    second = Ledger(tmp_path)
    second.end(second.orphaned[0], "success")
    close(second)
    for _ in range(KEPT_RUNS):
        close(Ledger(tmp_path))
    assert not first.run.exists()


@pytest.mark.parametrize(("batches", "jobs"), [(1, 10_000), (10_000, 1)])
def test_ten_thousand_jobs_are_read_quickly(batches: int, jobs: int, tmp_path: Path) -> None:
    lines = []
    for batch in range(batches):
        parts = [{"tag": f"{batch}-{i}", "rule": "r", "outputs": [f"{i}"], "logs": []} for i in range(jobs)]
        ids = [f"{batch}_{i}" for i in range(jobs)]
        lines.append({"event": "submit", "batch": f"b{batch}", "jobs": parts, "time": 1.0})
        lines.append({"event": "accept", "batch": f"b{batch}", "ids": ids, "time": 1.0})
        ends = zip(parts, ids, strict=True)
        lines += [{"event": "end", "tag": p["tag"], "id": i, "outcome": "success", "reason": ""} for p, i in ends]
    (tmp_path / "000001").mkdir()
    (tmp_path / "000001" / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    started = time.process_time()
    found = History(tmp_path).entries
    assert time.process_time() - started < 2
    assert len(found) == 10_000 and all(part.id and part.outcome for part in found.values())


BAD = {
    "zeros": b"\0" * 40,
    "no JSON": b"{'event': 'end'}",
    "cut off": b'{"event": "submit", "batch": "x", "jobs": [{"ta',
    "not UTF-8": b'{"event": "end", "tag": "a", "id": "7", "outcome": "failed", "reason": "\xff\xfe"}',
    "UTF-16": '{"event": "end", "tag": "a", "id": "7", "outcome": "failed", "reason": ""}'.encode("utf-16"),
    "a list": b"[1, 2]",
    "null": b"null",
    "no event": b'{"tag": "a"}',
    "an unknown event": b'{"event": "begin"}',
    "an event of another type": b'{"event": ["end"]}',
    "no jobs": b'{"event": "submit", "batch": "x", "time": 1.0}',
    "jobs that are a number": b'{"event": "submit", "batch": "x", "jobs": 5, "time": 1.0}',
    "a job without a tag": b'{"event": "submit", "batch": "x", "jobs": [{}], "time": 1.0}',
    "a tag that leads out of the folder": b'{"event": "submit", "batch": "x", "jobs": [{"tag": "../z", "rule": "r", '
    b'"wildcards": {}, "outputs": [], "logs": []}], "time": 1.0}',
    "a path with a NUL": b'{"event": "submit", "batch": "x", "jobs": [{"tag": "z", "rule": "r", '
    b'"outputs": ["\\u0000"], "logs": []}], "time": 1.0}',
    "a path that no file can have": b'{"event": "submit", "batch": "x", "jobs": [{"tag": "z", "rule": "r", '
    b'"wildcards": {}, "outputs": ["\\ud800"], "logs": []}], "time": 1.0}',
    "a time that is NaN": b'{"event": "submit", "batch": "x", "jobs": [], "time": NaN}',
    "a time that is a text": b'{"event": "submit", "batch": "x", "jobs": [], "time": "1"}',
    "ids that are numbers": b'{"event": "accept", "batch": "one", "ids": [8]}',
    "ids that are options": b'{"event": "accept", "batch": "one", "ids": ["--me"]}',
    "too many ids": b'{"event": "accept", "batch": "one", "ids": ["8", "9"]}',
    "a batch that is a list": b'{"event": "accept", "batch": [], "ids": ["8"]}',
    "a tag that is a list": b'{"event": "end", "tag": [], "id": "7", "outcome": "failed", "reason": ""}',
    "no id": b'{"event": "end", "tag": "a", "outcome": "failed", "reason": ""}',
    "an unknown outcome": b'{"event": "end", "tag": "a", "id": "7", "outcome": "fine", "reason": ""}',
    "a reason that is a number": b'{"event": "end", "tag": "a", "id": "7", "outcome": "failed", "reason": 1}',
    "an adoption without a tag": b'{"event": "adopt", "id": "7", "run": "000001"}',
    "a deep one": b"[" * 100_000,
    "a number of 5,000 digits": b'{"event": "accept", "batch": "one", "ids": ' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD)
@pytest.mark.parametrize("place", [0, 1, 2, 4])
def test_a_bad_line_is_passed_over_with_a_warning(
    line: bytes, place: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(tmp_path)
    put(ledger, "one", "a", ["7"])
    (b,) = put(ledger, "two", "b", ["8"])
    close(ledger)
    path = ledger.run / "ledger.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"".join(part + b"\n" for part in [*lines[:place], line, *lines[place:]]))
    found = {part.tag: part for part in Ledger(tmp_path).orphaned}
    assert found == {"a": found["a"], "b": b} and found["a"].id == "7"
    (warning,) = caplog.messages
    assert warning.startswith(f"{path}: line {place + 1} cannot be used (") and "skipped" in warning


def test_another_key_of_a_job_is_ignored(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    put(ledger, "one", "a", ["7"])
    path = ledger.run / "ledger.jsonl"
    path.write_text(path.read_text().replace('"tag": "a"', '"tag": "a", "run": "/tmp"'))
    assert History(tmp_path).entries["a"].run == ledger.run


def test_several_bad_lines_are_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(tmp_path)
    put(ledger, "one", "a", ["7"])
    close(ledger)
    path = ledger.run / "ledger.jsonl"
    path.write_bytes(b"\0\n" + path.read_bytes() + b"null\n" * 3 + b'{"event": "end", "ta')
    assert [part.tag for part in Ledger(tmp_path).orphaned] == ["a"]
    (warning,) = caplog.messages
    assert warning.startswith(f"{path}: line 1 cannot be used (") and warning.endswith("), nor can 4 more; skipped")


def script(ledger: Ledger, job: str, batch: str) -> None:
    """Write the script that submitit leaves in the folder of a run for each batch."""
    path = ledger.run / f"{job}_submission.sh"
    path.write_text(f"#!/bin/bash\n#SBATCH --comment={batch}\n#SBATCH --time=1\nsrun true\n")
    (ledger.run / f".submission_file_{job}.sh").symlink_to(path)


def test_batches_whose_line_is_damaged_are_known_by_their_scripts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for tag, batch, job in (("a", "one", "7"), ("b", "two", "8"), ("c", "three", "9")):
        put(ledger, batch, tag, [job])
        script(ledger, job, batch)
    close(ledger)
    path = ledger.run / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([b"\0" * 50 + b"\n", *lines[2:]]))  # both lines of `one` are gone
    assert Ledger(tmp_path).unrecorded == {"one"}
    path.write_bytes(b"".join([lines[1], lines[0], *lines[3:]]))  # no line names `two`; `one` was never accepted
    again = Ledger(tmp_path)
    assert again.unrecorded == {"two"} and {part.tag: part.id for part in again.orphaned} == {"a": None, "c": "9"}


def test_a_damaged_ledger_of_a_run_that_lives_is_an_error(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    put(ledger, "one", "a", ["7"])
    path = ledger.run / "ledger.jsonl"
    with path.open("ab") as file:
        file.write(b"null\n")
    with pytest.raises(WorkflowError, match=f"{path}: line 3 cannot be used .*still runs: wait for it, or stop it"):
        Ledger(tmp_path)
    close(ledger)
    assert [part.tag for part in Ledger(tmp_path).orphaned] == ["a"]


def test_a_line_that_is_being_written_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(tmp_path)
    put(ledger, "one", "a", ["7"])
    with (ledger.run / "ledger.jsonl").open("ab") as file:
        file.write(b'{"event": "submit", "batch": "tw')
    assert [part.tag for part in Ledger(tmp_path).foreign] == ["a"] and caplog.messages == []


def make_job(folder: Path, **changes: Any) -> Any:
    """Return a fake Snakemake job with the attributes that an entry is made of."""
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
    assert (entry.rule, entry.outputs, entry.logs) == ("rule", ["out"], ["log"])
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
