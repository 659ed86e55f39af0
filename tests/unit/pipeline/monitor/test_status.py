"""Tests of `python -m patch status` with fabricated outputs, logs, ledgers and queues."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from snakemake_executor_plugin_submitit.ledger import Entry, Ledger

from patch.masks.packed import MaskSet, save_masks
from patch.pipeline.cli.status import main
from patch.pipeline.resources.jobs import Job
from patch.pipeline.runs.progress import Progress, progress_path, write_progress

from ..conftest import Project

ROOT = Path(__file__).parents[4]
STEP = {"done": 120, "total": 2000, "seconds_left": 940.0}
NAMES = ["stage", "rule", "model", "run", "state", "reason", "job", "node", "started", "expected"]
KEYS = [*NAMES, "step", "steps", "eta_seconds", "restarts", "time_limits", "log", "outputs", "warning", "tail"]


class Place:
    """Project with an unfinished experiment."""

    def __init__(self, project: Project, capsys: pytest.CaptureFixture) -> None:
        self.project, self.folder, self._capsys = project, project.folder, capsys
        self.jobs = project.graph().jobs
        self.ledger = Ledger(self.folder / "work/submit")
        self._queue: list[str] = []
        self.answer(0)

    def answer(self, code: int, words: str = "") -> None:
        """Make a squeue that prints the queue and ends with this code and message."""
        (self.folder / "bin").mkdir(exist_ok=True)
        squeue = self.folder / "bin/squeue"
        squeue.write_text(f"#!/bin/sh\necho call >> calls\ncat queue\necho '{words}' >&2\nexit {code}\n")
        squeue.chmod(0o755)
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in self._queue))

    def job(self, rule: str, name: str = "") -> Job:
        return next(job for job in self.jobs if job.rule == rule and name in f"{job.model}/{job.name}")

    def make_inputs(self, job: Job) -> None:
        self.project.make(*job.needs)

    def lock(self) -> None:
        """Leave the lock of a running Snakemake."""
        lock = self.folder / ".snakemake/locks/0.output.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()

    def report(self, job: Job, age: float = 0.0, **progress: Any) -> Path:
        """Write the progress of a job, ``age`` seconds ago, and its log; return the path of the log."""
        write_progress(job.log, Progress(**progress))
        path = progress_path(job.log)
        written = path.stat().st_mtime - age
        os.utime(path, (written, written))
        return self.log(job, "a line")

    def log(self, job: Job, *lines: str) -> Path:
        path = Path(job.log)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    def submit(self, *jobs: Job, job: str | None = None, squeue: str = "", events: list[dict] | None = None) -> Entry:
        """Record jobs in the ledger as one array, and as ``squeue`` (state|reason|job|start) in the queue."""
        batch = f"batch-{job}-{time.monotonic()}"
        entries = [
            Entry(f"{one.rule}-{one.model}-{one.name}", one.rule, list(one.outputs), [], batch, Path()) for one in jobs
        ]
        self.ledger.submit(batch, entries)
        ids = [job] if len(jobs) == 1 else [f"{job}_{index}" for index in range(len(jobs))]
        if job:
            self.ledger.accept(batch, ids)
        for entry, number in zip(entries, ids, strict=True):
            entry.run, entry.id = self.ledger.run, number
            if squeue:
                self._queue.append(f"{number}|{squeue}|{batch}")
            if events:
                lines = [{"tag": entry.tag, "node": "n9", "time": 1_900_000_000.0, **event} for event in events]
                entry.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.answer(0)
        return entries[0]

    def run(self, *options: str) -> tuple[int, str, str]:
        code = main(["--configfile", "tiny.yaml", *options])
        return code, *self._capsys.readouterr()

    def text(self, *options: str) -> str:
        code, out, _ = self.run(*options)
        assert code == 0
        assert max(map(len, out.splitlines())) <= 120
        return out

    def json(self, job: Job) -> dict[str, Any]:
        code, out, _ = self.run("--json")
        assert code == 0
        (found,) = (status for status in json.loads(out) if status["outputs"] == list(job.outputs))
        assert list(found) == KEYS
        return found


@pytest.fixture
def place(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Place:
    monkeypatch.setenv("PATH", f"{project.folder}/bin:{os.environ['PATH']}")
    return Place(project, capsys)


# -- without SLURM ------------------------------------------------------------------------------


def test_jobs_with_outputs_are_done_and_their_dependents_are_ready(place: Place) -> None:
    corpus = place.job("fetch_corpus")
    assert place.json(corpus)["state"] == "ready"
    place.project.make(corpus)
    assert place.json(corpus)["state"] == "done"
    assert place.json(place.job("make_tokenizer"))["state"] == "ready"
    assert place.json(place.job("train_model"))["state"] == "waiting"
    assert not (place.folder / "calls").exists(), "squeue is not called without submissions"


def test_a_finished_experiment(place: Place) -> None:
    place.project.make(*(n for n in place.jobs if n.stage in ("evaluate", "tabulate")))
    for job in place.jobs:
        if job.rule == "update_weights":  # temporary
            Path(job.outputs[0]).unlink()
    text = place.text()
    assert text.startswith(f"tiny: {len(place.jobs)} jobs: {len(place.jobs)} done\n")
    assert "To come" not in text


@pytest.mark.parametrize("final", [3.9, 4.7])
def test_a_mask_that_is_worse_than_its_initial_one_is_a_warning(final: float, place: Place) -> None:
    job = place.job("learn", "qwen/maskllm")
    place.project.make(job)
    held_out = {"initial": 4.2, "final": final, "best": 3.9, "best_step": 2, "kept": "last", "sequences": 3}
    masks = {"layer": torch.tensor([[True, False, True, False]])}
    save_masks(job.outputs[0], MaskSet(masks, "2:4", header={"held_out": held_out}))
    warning = place.json(job)["warning"]
    text = " ".join(place.text().split())
    if final < 4.2:
        assert not warning and "warnings" not in text
    else:
        assert "worse than its initial mask (held-out loss 4.700, initial 4.200)" in warning
        assert f"warnings (1) qwen {job.name}: {warning}" in text


def test_a_job_of_this_machine_runs_while_a_process_prints_into_its_log(place: Place) -> None:
    job = place.job("learn", "qwen/maskllm")
    place.make_inputs(job)
    path = place.report(job, age=40, **STEP)
    with path.open("a") as log:
        process = subprocess.Popen(["sleep", "60"], stdout=log)
    try:
        found = place.json(job)
        text = place.text()
    finally:
        process.kill()
        process.wait()
    assert (found["state"], found["node"], found["step"], found["steps"]) == ("running", os.uname().nodename, 120, 2000)
    assert 890 < found["eta_seconds"] <= 900
    assert "120/2000  15 min" in text
    assert (place.json(job)["state"], place.json(job)["reason"]) == ("ready", "interrupted")
    place.lock()
    found = place.json(job)
    assert (found["state"], found["step"], found["eta_seconds"]) == ("started", 120, None)
    assert found["reason"] == "its last report was 1 min ago"


@pytest.mark.parametrize(
    ("progress", "state", "reason"),
    [
        ({"state": "failed", "error": "the loss is nan at step 3 of 5"}, "failed", "the loss is nan at step 3 of 5"),
        ({"state": "stopped"}, "ready", "stopped"),
    ],
)
def test_the_progress_file_shows_how_a_local_job_ended(
    place: Place, progress: dict[str, str], state: str, reason: str
) -> None:
    job = place.job("learn", "qwen/maskllm")
    place.make_inputs(job)
    place.report(job, done=3, total=5, **progress)
    place.log(job, *"abcdef")
    found = place.json(job)
    assert (found["state"], found["reason"], found["step"], found["steps"]) == (state, reason, 3, 5)
    assert found["tail"] == ([*"bcdef"] if state == "failed" else [])


def test_an_output_that_was_deleted_can_be_made_again(place: Place) -> None:
    job = place.job("learn", "qwen/maskllm")
    place.make_inputs(job)
    place.report(job, age=10, **STEP, state="done")
    assert place.json(job)["state"] == "ready"


# -- with SLURM ---------------------------------------------------------------------------------


def test_a_job_that_runs_on_slurm(place: Place) -> None:
    job = place.job("learn", "qwen/maskllm")
    place.make_inputs(job)
    events = [{"event": "start", "restarts": 0}, {"event": "time limit"}, {"event": "start", "restarts": 1}]
    entry = place.submit(job, job="41", squeue="RUNNING|None|n1|2030-01-02T03:04:05", events=events)
    os.utime(entry.events, (1, 1))
    place.report(job, age=40, **STEP)
    found = place.json(job)
    assert 890 < found.pop("eta_seconds") <= 900
    assert found == {
        "stage": "learn",
        "rule": "learn",
        "model": "qwen",
        "run": "maskllm_2of4_0.5_s0",
        "state": "running",
        "reason": "",
        "job": "41",
        "node": "n1",
        "started": "2030-01-02T03:04:05",
        "expected": None,
        "step": 120,
        "steps": 2000,
        "restarts": 1,
        "time_limits": 1,
        "log": "results/tiny/logs/learn/qwen/maskllm_2of4_0.5_s0.log",
        "outputs": list(job.outputs),
        "warning": "",
        "tail": [],
    }
    text = place.text()
    assert "01-02 03:04  120/2000  15 min  1 (1 at its limit)" in text
    assert "To come: " in text and "on the 1 core that jobs hold now" in text


def test_a_job_without_reports_for_long_is_silent(place: Place) -> None:
    job = place.job("learn", "qwen/maskllm")
    place.make_inputs(job)
    entry = place.submit(job, job="41", squeue="RUNNING|None|n1|x", events=[{"event": "start"}])
    place.report(job, age=3600, **STEP)
    os.utime(entry.events, (1, 1))
    found = place.json(job)
    assert (found["step"], found["eta_seconds"], found["reason"]) == (120, None, "silent for 1 h 00 min")


def test_pending_array_jobs_have_slurms_reason(place: Place) -> None:
    jobs = [place.job("learn", f"{model}/maskllm") for model in ("qwen", "llama")]
    for job in jobs:
        place.make_inputs(job)
    place.submit(*jobs, job="41", squeue="PENDING|Priority||2030-01-02T03:04:05")
    late = place.job("prune", "magnitude")
    place.submit(late)
    assert place.json(late)["state"] == "ready"
    place.lock()
    assert [place.json(job)["job"] for job in jobs] == ["41_0", "41_1"]
    found = place.json(jobs[1])
    assert (found["state"], found["reason"], found["expected"], found["started"]) == (
        "pending",
        "Priority",
        "2030-01-02T03:04:05",
        None,
    )
    assert (place.json(late)["state"], place.json(late)["job"]) == ("pending", None)
    assert "pending (3)" in place.text()


def test_a_requeued_job(place: Place) -> None:
    job = place.job("learn", "qwen/maskllm")
    place.make_inputs(job)
    events = [{"event": "start", "restarts": 0}, {"event": "time limit"}]
    place.submit(job, job="41", squeue="PENDING|BeginTime||N/A", events=events)
    place.report(job, state="stopped", done=120, total=2000)
    found = place.json(job)
    assert (found["state"], found["reason"], found["restarts"], found["time_limits"]) == ("pending", "BeginTime", 1, 1)
    assert (found["step"], found["steps"], found["eta_seconds"], found["expected"]) == (120, 2000, None, None)


def test_a_report_of_the_previous_start_is_ignored(place: Place) -> None:
    job = place.job("learn", "qwen/maskllm")
    place.make_inputs(job)
    place.report(job, age=3600, state="stopped", done=120, total=2000)
    events = [{"event": "start"}, {"event": "time limit"}, {"event": "start"}]
    place.submit(job, job="41", squeue="RUNNING|None|n1|2030-01-02T03:04:05", events=events)
    found = place.json(job)
    assert (found["state"], found["step"], found["reason"], found["restarts"]) == ("running", None, "", 1)


def test_a_failed_job_is_shown_with_the_end_of_its_log_and_blocks_its_dependents(place: Place) -> None:
    job = place.job("prune", "qwen/sparsegpt")
    place.make_inputs(job)
    entry = place.submit(job, job="41", events=[{"event": "start", "restarts": 0}, {"event": "end", "exit": 1}])
    place.ledger.end(entry, "failed", "exit code 1, on n9")
    place.log(job, *(f"line {number}" for number in range(8)), "error: the matrix is singular")
    found = place.json(job)
    assert (found["state"], found["reason"], found["node"]) == ("failed", "exit code 1, on n9", "n9")
    assert found["tail"] == [*(f"line {number}" for number in (4, 5, 6, 7)), "error: the matrix is singular"]
    text = place.text()
    assert "failed (1)" in text and "line 3" not in text
    assert (
        "\n      exit code 1, on n9\n      | line 4\n" in text and "\n      | error: the matrix is singular\n" in text
    )
    assert not (place.folder / "calls").exists(), "no job is open"
    for follower in (place.job("update_weights", "qwen/sparsegpt"), place.job("collect")):
        assert (place.json(follower)["state"], place.json(follower)["reason"]) == ("waiting", "behind a failed job")
    assert place.json(place.job("evaluate", "llama/dense"))["reason"] == ""


@pytest.mark.parametrize(
    ("squeue", "events", "reason"),
    [
        ("OUT_OF_MEMORY|OutOfMemory|n1|x", [{"event": "start"}], "SLURM ended it: OUT_OF_MEMORY, OutOfMemory"),
        ("COMPLETED|None|n1|x", [{"event": "start"}, {"event": "end", "exit": 2}], "exit code 2"),
        ("", [{"event": "start"}], "SLURM no longer knows the job and its output is missing"),
        ("", [{"event": "start"}, {"event": "time limit"}] * 3, "its time limit was reached 3 times"),
    ],
)
def test_a_job_that_ended_without_snakemake(place: Place, squeue: str, events: list[dict], reason: str) -> None:
    job = place.job("prune", "qwen/wanda_2of4")
    place.make_inputs(job)
    entry = place.submit(job, job="41", squeue=squeue, events=events)
    entry.log("err").write_text("slurmstepd: error: gone\n")
    found = place.json(job)
    assert (found["state"], found["reason"]) == ("failed", reason)
    assert found["tail"] == ["slurmstepd: error: gone"]
    place.project.make(job)
    assert place.json(job)["state"] == "done"


def test_sbatch_errors_are_shown_in_full(place: Place) -> None:
    job = place.job("prune", "qwen/wanda_2of4")
    place.make_inputs(job)
    words = f"sbatch: error: {'a reason that is long ' * 10}"
    place.ledger.end(place.submit(job), "failed", words)
    assert place.json(job)["reason"] == words
    assert " ".join(words.split()) in " ".join(place.text().split())


def test_a_cancelled_job_can_run_again_and_the_newest_submission_counts(place: Place) -> None:
    job = place.job("prune", "qwen/wanda_2of4")
    place.make_inputs(job)
    place.ledger.end(place.submit(job, job="41"), "cancelled")
    assert (place.json(job)["state"], place.json(job)["reason"]) == ("ready", "cancelled")
    place.ledger = Ledger(place.folder / "work/submit")
    place.submit(job, job="42", squeue="RUNNING|None|n1|2030-01-02T03:04:05")
    assert (place.json(job)["state"], place.json(job)["job"]) == ("running", "42")


def test_without_an_answer_from_squeue_states_come_from_files(place: Place) -> None:
    runs, waits, ended = (place.job("prune", f"qwen/{name}") for name in ("magnitude", "wanda_2of4", "sparsegpt"))
    place.project.make(place.job("train_model", "qwen"), place.job("calibrate"))
    place.submit(runs, job="41", events=[{"event": "start", "restarts": 0}])
    place.submit(waits, job="42")
    place.submit(ended, job="43", events=[{"event": "start"}, {"event": "end", "exit": 1}])
    place.answer(1, "slurm_load_jobs error: Unable to contact slurm controller")
    states = {job: place.json(job) for job in (runs, waits, ended)}
    assert [found["state"] for found in states.values()] == ["running", "pending", "failed"]
    assert states[runs]["node"] == "n9" and states[runs]["started"].startswith("2030-03-1")
    text = place.text()
    assert "no answer from SLURM; states are from files alone (slurm_load_jobs error: Unable to contact" in text
    assert (place.folder / "calls").read_text().count("call") == 4, "once for each report"


@pytest.mark.parametrize(
    "line",
    [
        b"\0" * 40,
        b"\xff\xfe",
        b'{"event": "end", "ta',
        b"[]",
        b"null",
        b'{"event": "submit", "batch": "x", "jobs": 5, "time": 1.0}',
        b'{"event": "accept", "batch": [], "ids": []}',
        b'{"event": "start", "tag": 1, "node": {}, "time": "never"}',
        b"[" * 100_000,
    ],
    ids=["zeros", "UTF-8", "cut off", "list", "null", "jobs", "batch", "event", "deep"],
)
def test_invalid_lines_are_skipped_with_a_warning(place: Place, line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    job = place.job("prune", "qwen/magnitude")
    place.make_inputs(job)
    entry = place.submit(job, job="41", events=[{"event": "start", "restarts": 0}])
    place.answer(1, "no contact")
    ledger = place.ledger.run / "ledger.jsonl"
    for path in (ledger, entry.events):
        path.write_bytes(line + b"\n" + path.read_bytes() + line + b"\n")
    found = place.json(job)
    assert (found["state"], found["job"], found["node"], found["restarts"]) == ("running", "41", "n9", 0)
    for path in (ledger, entry.events):
        relative = path.relative_to(place.folder)
        (warning,) = (text for text in caplog.messages if text.startswith(f"{relative}: "))
        assert "line 1 cannot be used (" in warning and warning.endswith(", nor can 1 more; skipped")


def test_a_submit_folder_that_others_can_write_to_is_not_read(place: Place) -> None:
    job = place.job("prune", "qwen/magnitude")
    place.submit(job, job="41", squeue="RUNNING|None|n1|x")
    (place.folder / "work/submit").chmod(0o777)
    assert place.json(job)["job"] is None
    assert "the state of SLURM's queue is unknown: work/submit belongs to " in place.text()


# -- text output --------------------------------------------------------------------------------


def test_stage_counts_add_up(place: Place) -> None:
    place.project.make(place.job("train_model", "qwen"))
    head, _, columns, *lines = place.text().splitlines()
    assert columns.split() == ["stage", "jobs", "done", "running", "pending", "failed", "ready", "waiting"]
    rows = [[0 if word == "-" else int(word) for word in line.split()[1:]] for line in lines[:8]]
    assert all(row[0] == sum(row[1:]) for row in rows)
    assert sum(row[0] for row in rows) == len(place.jobs)
    assert f"{sum(row[1] for row in rows)} done" in head


def test_done_jobs_are_listed_when_asked_for(place: Place) -> None:
    place.project.make(place.job("fetch_corpus"))
    assert "done (1)" not in place.text()
    text = place.text("--all")
    assert "done (1)" in text
    assert sum(line.startswith("  ") for line in text.splitlines()) == len(place.jobs) + text.count("  rule ")


def test_long_lists_are_cut(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patch.pipeline.monitor.text.ROWS", 2)
    jobs = [job for job in place.jobs if job.rule == "prune"]
    place.project.make(*(place.job("train_model", model) for model in ("qwen", "llama")), place.job("calibrate"))
    place.submit(*jobs, job="41", squeue="PENDING|Resources||N/A")
    assert f"... and {len(jobs) - 2} more: --all" in place.text()
    assert "more" not in place.text("--all")


def test_logs_of_a_run_are_found_by_a_part_of_its_name(place: Place) -> None:
    job = place.job("learn", "qwen/maskllm")
    own = place.log(job, "x")
    entry = place.submit(job, job="41")
    entry.log("out").write_text("x")
    evaluation = place.log(place.job("evaluate", "qwen/maskllm"), "x")
    other = place.log(place.job("learn", "llama/maskllm"), "x")
    slurm = os.path.relpath(entry.log("out"))
    assert place.run("--logs", "qwen/maskllm_2of4_0.5_s0")[1].split() == [str(own), slurm, str(evaluation)]
    for name in ("maskllm_2of4_0.5_s0", "maskllm"):
        assert set(place.run("--logs", name)[1].split()) == {str(own), slurm, str(evaluation), str(other)}
    assert set(place.run("--logs", "learn/")[1].split()) == {str(own), slurm, str(other)}


def test_an_unknown_run(place: Place) -> None:
    code, out, err = place.run("--logs", "maskllm_2of4_0.5_s1")
    assert (code, out) == (2, "")
    assert "no run `maskllm_2of4_0.5_s1`; did you mean `maskllm_2of4_0.5_s0`?" in err
    code, _, err = place.run("--logs", "dense")
    assert code == 2 and "has no log" in err


def test_a_wrong_configuration_is_one_message(capsys: pytest.CaptureFixture) -> None:
    assert main(["--configfile", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err == "error: configuration nowhere.yaml: no such file\n"


def test_keys_can_be_given(place: Place) -> None:
    assert f"tiny: {len(place.jobs)} jobs" in place.text()
    assert f"tiny: {len(place.jobs)} jobs" not in place.text("--config", "seeds=[0,1]")


def test_nothing_heavy_is_imported() -> None:
    heavy = "('torch', 'transformers', 'snakemake')"
    code = f"import sys, patch.pipeline.cli.status; print([m for m in {heavy} if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert run.stdout == "[]\n", run.stderr
