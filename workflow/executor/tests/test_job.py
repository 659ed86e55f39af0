"""Execution of jobs as SLURM does it: submitit's process, its environment, and signals to all processes of a job."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import Process, get_context
from pathlib import Path
from typing import Any

import pytest
import snakemake_executor_plugin_submitit
from snakemake_executor_plugin_submitit import job as module
from snakemake_executor_plugin_submitit.job import RESUMABLE_EXIT, TERMINATED, ClusterJob
from snakemake_executor_plugin_submitit.ledger import Entry, Ledger
from snakemake_executor_plugin_submitit.records import Result, read_events, read_result
from snakemake_executor_plugin_submitit.resources import make_request
from snakemake_executor_plugin_submitit.settings import ExecutorSettings
from snakemake_executor_plugin_submitit.submission import Batch, submit
from submitit.core.submission import process_job
from submitit.core.utils import DelayedSubmission

PACKAGES = str(Path(snakemake_executor_plugin_submitit.__file__).parents[1])
# A payload that takes a moment to save, while its shell ends at once.
SAVES = f"""
{sys.executable} -S -c '
import pathlib, signal, sys, time
def save(number, frame):
    time.sleep(0.3)
    pathlib.Path("saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGUSR2, save)
pathlib.Path("ready").touch()
time.sleep(60)'
exit $?
"""


class Node:
    """A compute node, whose scontrol kills the calling process, as SLURM does."""

    def __init__(self, folder: Path, commands: Any, until: Callable) -> None:
        self.folder, self.commands, self.until = folder, commands, until
        self.processes: list[Process] = []
        commands.add("scontrol", "kill -KILL $PPID")

    def environment(self, job: str = "7", rank: int = 0) -> dict[str, str]:
        """Return the variables that SLURM and submitit set for a job or array task."""
        array, _, task = job.rpartition("_")
        return {
            "PATH": f"{self.commands.folder}:/usr/bin:/bin",
            "PYTHONPATH": PACKAGES,
            "SUBMITIT_EXECUTOR": "slurm",
            "SLURM_JOB_ID": "99" if array else job,
            "SLURM_PROCID": str(rank),
            "SLURMD_NODENAME": "n1",
            "SLURM_RESTART_COUNT": "2",
            "SNAKEMAKE_PROFILE": "default",
            **({"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": task} if array else {}),
        }

    def start(self, command: str, job: str = "7", rank: int = 0, **options: Any) -> Process:
        """Start a job in the node's folder, in its own process group."""
        payload = ClusterJob(command, "tag", str(self.folder / "events.jsonl"), **options)
        DelayedSubmission(payload).dump(self.folder / f"{job}_submitted.pkl")

        def run() -> None:
            os.setsid()
            os.chdir(self.folder)
            os.environ.clear()
            os.environ.update(self.environment(job, rank))
            with Path("out").open("w") as sys.stdout:
                process_job(self.folder)

        # Forked, since a new interpreter takes longer than the whole test.
        self.processes.append(get_context("fork").Process(target=run))
        self.processes[-1].start()
        return self.processes[-1]

    def end(self, process: Process) -> int:
        """Return the exit code of a job that ends within seconds."""
        process.join(20)
        return process.exitcode

    def run(self, command: str, **options: Any) -> int:
        return self.end(self.start(command, **options))

    def signal(self, process: Process, number: int) -> int:
        """Send a signal to all processes of a job once it is ready, and return its exit code."""
        self.until((self.folder / "ready").exists)
        os.killpg(process.pid, number)
        (self.folder / "signalled").touch()
        return self.end(process)

    def result(self, job: str = "7") -> Result | None:
        return read_result(self.folder / f"{job}_0_result.json")

    def events(self) -> list[str]:
        path = self.folder / "events.jsonl"
        return [json.loads(line)["event"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def node(tmp_path: Path, commands: Any, until: Callable, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    wait = module._terminated_within
    monkeypatch.setattr(module, "_terminated_within", lambda seconds: wait(min(seconds, 0.4)))
    made = Node(tmp_path, commands, until)
    yield made
    for process in made.processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_the_script_that_sbatch_gets_runs_the_job(node: Node) -> None:
    node.commands.add("srun", 'while [ "$1" != "${1#--}" ]; do [ "$1" = --unbuffered ] || shift; shift; done; "$@"')
    node.commands.add("sbatch", "echo Submitted batch job 7")
    ledger = Ledger(node.folder / "submit")
    job = ClusterJob("echo $LINE $SRUN_CPUS_PER_TASK > said", "tag", str(ledger.run / "events"))
    entry = Entry("tag", "rule", [], [], "", ledger.run)
    submit(
        Batch(
            [job], [entry], make_request({"runtime": 1}, 2, ExecutorSettings(), {}), "rule", ["export LINE=prologue"]
        ),
        ledger,
    )
    environment = node.environment() | {"SLURM_CPUS_PER_TASK": "2"}
    subprocess.run(["/bin/bash", ledger.run / "7_submission.sh"], env=environment, cwd=node.folder, check=True)
    assert read_result(entry.result) == Result(0)
    assert (node.folder / "said").read_text() == "prologue 2\n"


def test_a_job_that_succeeds(node: Node) -> None:
    assert node.run("env > environment") == 0
    assert node.result() == Result(0) and node.events() == ["start", "end"]
    names = {line.partition("=")[0] for line in (node.folder / "environment").read_text().splitlines()}
    assert "SLURM_JOB_ID" in names and "SNAKEMAKE_PROFILE" not in names
    start = json.loads((node.folder / "events.jsonl").read_text().splitlines()[0])
    assert (start["node"], start["tag"], start["restarts"]) == ("n1", "tag", 2)


def test_a_job_that_fails(node: Node) -> None:
    assert node.run("exit 3", signal_delay=10, time_limits=3) == 0
    assert node.result() == Result(3) and node.commands.calls("scontrol") == []


def test_a_job_that_is_terminated_leaves_no_result(node: Node) -> None:
    process = node.start("touch ready; sleep 60", signal_delay=10, time_limits=3)
    assert node.signal(process, signal.SIGTERM) == TERMINATED == 143
    assert node.result() is None and node.events() == ["start", "terminated"]
    assert node.commands.calls("scontrol") == []


@pytest.mark.parametrize("command", ["kill -TERM $PPID $$", "(sleep 0.05; kill -TERM $PPID) & kill -TERM $$"])
def test_the_order_in_which_processes_are_terminated_makes_no_difference(node: Node, command: str) -> None:
    assert node.run(command) == TERMINATED
    assert node.result() is None


def test_a_terminated_job_has_time_to_save_though_its_shell_is_gone(node: Node) -> None:
    assert node.signal(node.start(SAVES), signal.SIGTERM) == TERMINATED
    assert (node.folder / "saved").exists() and node.result() is None


@pytest.mark.parametrize("job", ["7", "5_3"])
def test_a_job_that_saves_before_its_time_limit_goes_back_to_the_queue(node: Node, job: str) -> None:
    process = node.start(SAVES, job=job, signal_delay=20, time_limits=2)
    assert node.signal(process, signal.SIGUSR2) == -signal.SIGKILL  # by SLURM, while it waits
    assert node.commands.calls("scontrol") == [f"requeue {job}"]
    assert (node.folder / "saved").exists() and node.result(job) is None
    assert node.events() == ["start", "time limit"]


def test_a_job_that_does_not_leave_in_time_is_killed_and_goes_back(node: Node, running: Callable) -> None:
    command = "(sleep 62 & echo $! >> pids; wait) & sleep 61 & jobs -p >> pids; sleep 0.1; touch ready; wait"
    process = node.start(command, signal_delay=1, time_limits=2)
    assert node.signal(process, signal.SIGUSR2) == -signal.SIGKILL
    assert node.commands.calls("scontrol") == ["requeue 7"] and node.result() is None
    pids = [int(pid) for pid in (node.folder / "pids").read_text().split()]
    assert len(pids) == 3 and not any(map(running, pids))
    assert "did not exit in time" in (node.folder / "out").read_text()


def test_a_job_that_ends_well_after_the_warning_has_ended_well(node: Node) -> None:
    process = node.start("touch ready; while [ ! -e signalled ]; do sleep 0.02; done", signal_delay=20, time_limits=2)
    assert node.signal(process, signal.SIGUSR2) == 0
    assert node.result() == Result(0) and node.commands.calls("scontrol") == []


@pytest.mark.parametrize("code", [0, 4])
def test_a_job_that_cannot_be_resumed_is_not_disturbed(node: Node, code: int) -> None:
    process = node.start(f"touch ready; while [ ! -e signalled ]; do sleep 0.02; done; exit {code}")
    assert node.signal(process, signal.SIGUSR2) == 0
    assert node.result() == Result(code) and node.commands.calls("scontrol") == []


def test_a_job_that_used_up_its_time_limits_fails(node: Node) -> None:
    before = [{"event": "time limit", "tag": tag, "node": "n1", "time": 1.0} for tag in ("tag", "other", "tag")]
    (node.folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in before))
    assert node.signal(node.start(SAVES, signal_delay=20, time_limits=3), signal.SIGUSR2) == 0
    assert node.result() == Result(75, "its time limit was reached 3 times; the job is not queued again")
    assert node.commands.calls("scontrol") == []


def test_a_job_that_has_a_result_does_not_run_again(node: Node) -> None:
    path = node.folder / "7_0_result.json"
    path.write_text('{"exit": 0, "reason": ""}')
    before = path.stat()
    assert node.run("touch ran") == 0
    assert not (node.folder / "ran").exists() and node.events() == []
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_bad_lines_among_its_events_do_not_stop_a_job(node: Node) -> None:
    (node.folder / "events.jsonl").write_bytes(b"\xff\0\n[]\n" + b'{"event": "sta')
    assert node.run("true") == 0
    assert node.result() == Result(0) and read_events(node.folder / "events.jsonl")[0][-1]["event"] == "end"
    assert "events.jsonl: line 1 cannot be used (" in (node.folder / "out").read_text()


def test_a_pickle_is_no_result(node: Node) -> None:
    (node.folder / "7_0_result.pkl").write_bytes(b"anything")
    assert node.run("touch ran; exit 2") == 0
    assert (node.folder / "ran").exists() and node.result() == Result(2)


def test_only_the_first_task_does_something(node: Node) -> None:
    assert node.run("touch ran", rank=1) == 0
    assert not (node.folder / "ran").exists() and node.events() == [] and node.result() is None


def test_a_job_that_cannot_start_has_a_reason(node: Node) -> None:
    (node.folder / "events.jsonl").mkdir()
    assert node.run("true") != 0
    assert node.result().exit == 1 and node.result().reason.startswith("IsADirectoryError: ")


@pytest.fixture
def requeue(commands: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[list[bool]], tuple]:
    """Return a function that requeues a job: whether SIGTERM arrives in each pause -> exit code and pauses."""

    def run(terminated: list[bool]) -> tuple[int, list[float]]:
        pauses: list[float] = []

        def wait(seconds: float) -> bool:
            pauses.append(seconds)
            return terminated[len(pauses) - 1]

        monkeypatch.setattr(module, "_terminated_within", wait)
        monkeypatch.setattr(module, "_leave", sys.exit)
        monkeypatch.setenv("SUBMITIT_JOB", "5_3")
        with pytest.raises(SystemExit) as left:
            ClusterJob("true", "tag", str(tmp_path / "events"), 2, 20)._requeue()
        return left.value.code, pauses

    return run


@pytest.mark.parametrize(("failures", "calls"), [(0, 1), (2, 3), (9, 10)])
def test_a_controller_that_is_away_is_asked_again(commands: Any, requeue: Callable, failures: int, calls: int) -> None:
    commands.add("scontrol", f"[ $CALLS -gt {failures} ] || exit 1")
    pauses = [0, 2, 5, *[10] * 20][:calls] + [60]
    assert requeue([False] * (calls + 1)) == (RESUMABLE_EXIT, pauses)
    assert commands.calls("scontrol") == ["requeue 5_3"] * calls


def test_a_job_that_is_cancelled_is_not_called_back(commands: Any, requeue: Callable) -> None:
    commands.add("scontrol", "exit 1")
    assert requeue([False, False, True]) == (TERMINATED, [0, 2, 5])
    assert len(commands.calls("scontrol")) == 2


def test_without_scontrol_a_job_waits_for_its_end(commands: Any, requeue: Callable) -> None:
    assert requeue([False] * 9 + [True]) == (TERMINATED, [0, 2, 5, *[10] * 7])


def test_a_job_loads_neither_snakemake_nor_its_interfaces() -> None:
    code = "import sys, snakemake_executor_plugin_submitit.job as j; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": PACKAGES}, check=True
    )
    loaded = {name for name in done.stdout.split() if name.startswith(("snakemake", "submitit", "numpy"))}
    modules = {f"snakemake_executor_plugin_submitit.{name}" for name in ("job", "records")}
    assert loaded == {"snakemake_executor_plugin_submitit", *modules}
