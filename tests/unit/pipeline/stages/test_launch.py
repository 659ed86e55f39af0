"""A learning stage of several real processes ends as one process does, in success, failure and interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patch.distributed import launch
from patch.errors import InputError
from patch.masks.packed import load_masks

ROOT = Path(__file__).parents[4]
LONG = 60  # steps, time enough to stop a run in the middle
WAIT = 300  # seconds at most, on a machine that does much else
# Substitute for SLURM's srun: starts --ntasks copies of the command, forwards signals, exits with the highest code.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys, time
arguments, options = sys.argv[1:], {{}}
while arguments[0].startswith("--"):
    name, _, options[name] = arguments.pop(0).partition("=")
count = int(options["--ntasks"])
tasks = [subprocess.Popen(arguments, env=os.environ | {{"SLURM_NODEID": str(node)}}) for node in range(count)]
def send(number, frame):
    for task in tasks:
        task.send_signal(signal.SIGKILL if number == signal.SIGTERM else number)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, send)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
while any(task.poll() is None for task in tasks):
    time.sleep(0.05)
sys.exit(max(task.returncode % 256 for task in tasks))
"""


@pytest.fixture
def method() -> str:
    """Return the name of the method that learns."""
    return "patch-joint"


@pytest.fixture
def settings(files: Any, method: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return settings with two micro-batches for each step; the parameter is the number of steps."""
    two_four = {"method": method, "pattern": "2:4", "sparsity": 0.5, "tile": None}
    settings = files.settings("patch-joint") | (two_four if method == "proxsparse" else {})
    steps = getattr(request, "param", 5)
    return settings | {"learning": settings["learning"] | {"steps": steps, "batch_size": 4, "micro_batch_size": 2}}


@pytest.fixture
def options(files: Any, tmp_path: Path) -> dict[str, Path]:
    """Return the inputs and outputs of the run."""
    outputs = {"mask": tmp_path / "m", "curve": tmp_path / "c", "checkpoints": tmp_path / "run"}
    return {"model": files.model, "sequences": files.sequences} | outputs


@pytest.fixture
def whole(stage: Callable, settings: dict, options: dict, tmp_path: Path) -> Path:
    """Return the mask of an uninterrupted run in this process."""
    mask = tmp_path / "whole"
    ended = stage("learn", settings, **options | {"mask": mask, "checkpoints": tmp_path / "whole-run"})
    assert ended.code == 0, ended.error
    return mask


@pytest.fixture
def start(settings: dict, options: dict, job_file: Callable) -> Callable[..., subprocess.Popen]:
    """Return a function that starts the run on a command line with further options."""
    processes: list[subprocess.Popen] = []

    def run(**more: Any) -> subprocess.Popen:
        command = [
            sys.executable,
            "-m",
            "patch.pipeline.stages",
            "learn",
            "--settings",
            str(job_file("learn", settings)),
        ]
        for name, value in (options | more).items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.wait()


def wait_for_steps(process: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + WAIT
    while not (folder / "log.jsonl").exists() or len((folder / "log.jsonl").read_text().splitlines()) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def ranks_of(process: subprocess.Popen) -> list[int]:
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def same(one: Path, other: Path) -> bool:
    masks, others = load_masks(one), load_masks(other)
    return all(torch.equal(mask, others.masks[name]) for name, mask in masks.masks.items())


@pytest.mark.parametrize(
    ("method", "more"),
    [("patch-joint", {}), ("patch-joint", {"shard_weights": "yes", "offload": "yes"}), ("proxsparse", {})],
)
def test_two_nodes_learn_what_one_process_does(
    method: str,
    more: dict[str, str],
    start: Callable,
    whole: Path,
    options: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/srun").write_text(SRUN)
    (tmp_path / "bin/srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    process = start(processes=1, nodes=2, **more)
    out, error = process.communicate(timeout=WAIT)
    assert process.returncode == 0, error
    assert out.count(f"{method}: sparsity") == 1
    assert same(options["mask"], whole) and not options["checkpoints"].exists()
    assert [json.loads(line)["step"] for line in options["curve"].read_text().splitlines()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("settings", [LONG], indirect=True)
def test_a_stopped_run_goes_on_in_another_number_of_processes(
    start: Callable, stage: Callable, whole: Path, settings: dict, options: dict
) -> None:
    process = start(processes=2)
    wait_for_steps(process, options["checkpoints"])
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=WAIT)
    assert process.returncode == 75, error
    assert "Traceback" not in error and out.count("stopped by a signal after step") == 1
    assert not options["mask"].exists()
    ended = stage("learn", settings, **options)
    assert ended.code == 0 and "resuming at step" in ended.out
    assert same(options["mask"], whole)


@pytest.mark.parametrize("settings", [LONG], indirect=True)
def test_a_process_that_is_killed_ends_the_others(start: Callable, options: dict) -> None:
    process = start(processes=2)
    wait_for_steps(process, options["checkpoints"])
    ranks = ranks_of(process)
    os.kill(ranks[-1], signal.SIGKILL)
    _, error = process.communicate(timeout=WAIT)
    assert len(ranks) == 2 and process.returncode == 128 + signal.SIGKILL
    assert error.endswith("was ended by SIGKILL (out of memory?)\n")
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


def test_a_mistake_is_one_message(start: Callable, tmp_path: Path) -> None:
    process = start(processes=2, pattern_mask=tmp_path / "none")
    _, error = process.communicate(timeout=WAIT)
    message = f"error: `pattern_mask` is {tmp_path}/none, but the settings expect none\n"
    assert (process.returncode, error) == (2, message)


def test_nodes_need_slurm(stage: Callable, settings: dict, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    ended = stage("learn", settings, **options, nodes=2)
    assert ended.code == 2 and "`resources.learn_nodes` is 2" in ended.error


def test_a_process_of_another_job_is_none_of_this_one(
    stage: Callable, settings: dict, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    ended = stage("learn", settings, **options, processes=2)
    assert ended.code == 2 and "this is one of 4 processes, not of 2" in ended.error


@pytest.mark.parametrize("value", ["0", "-1", "two"])
def test_numbers_of_processes(value: str, stage: Callable, settings: dict, options: dict) -> None:
    with pytest.raises(SystemExit) as end:
        stage("learn", settings, **options, processes=value)
    assert end.value.code == 2


def test_srun_shares_all_that_the_job_has() -> None:
    command = launch.srun_command(4, ["python", "-m", "patch.distributed.launch", "8", "4", "learn"])
    assert command[0] == "srun" and command[-6:] == ["python", "-m", "patch.distributed.launch", "8", "4", "learn"]
    flags = dict(flag.partition("=")[::2] for flag in command[1:-6])
    assert flags == {
        "--nodes": "4",
        "--ntasks": "4",
        "--ntasks-per-node": "1",
        "--overlap": "",
        "--mem": "0",
        "--cpu-bind": "none",
        "--export": "ALL",
        "--kill-on-bad-exit": "1",
    }


def test_environment_of_srun() -> None:
    given = {"SLURM_CPUS_PER_TASK": "16", "SLURM_STEP_GRES": "none", "HOME": "/home/me"}
    assert launch.srun_environment(given) == {
        "SLURM_CPUS_PER_TASK": "16",
        "SRUN_CPUS_PER_TASK": "16",
        "HOME": "/home/me",
    }
    assert launch.srun_environment({}) == {}


@pytest.mark.parametrize(
    ("codes", "cause"),
    [([1, -9], -9), ([-15, 1, -15], 1), ([-15, -15], -15), ([-15, -11], -11), ([2, 1], 2), ([-6, 1, -9], -6)],
)
def test_first_cause(codes: list[int], cause: int) -> None:
    assert launch.first_cause(codes) == cause


def test_address_is_the_host_name_where_it_resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.socket, "gethostname", lambda: "localhost")
    assert launch.own_address() == "localhost"
    monkeypatch.setattr(launch.socket, "gethostname", lambda: "n1.invalid")
    assert launch.own_address() == "127.0.0.1"


def test_without_a_launcher_there_is_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(launch.VARIABLE, raising=False)
    assert not launch.report_end(2, "message")


def test_reports_of_the_processes_override_exit_codes(monkeypatch: pytest.MonkeyPatch) -> None:

    def report(arguments: list[str], processes: int, nodes: int) -> int:
        for rank in reports:
            monkeypatch.setenv("RANK", str(rank))
            assert launch.report_end(*reports[rank])
        monkeypatch.delenv("RANK", raising=False)
        return code

    monkeypatch.setattr(launch, "run_node", report)
    monkeypatch.setenv(launch.VARIABLE, "")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    reports: dict[int, tuple] = {}
    code = -9
    assert launch.launch(["learn"], 3, 1) == 137 and os.environ["OMP_NUM_THREADS"] == "2"
    reports = {1: (75,), 2: (75,)}
    assert launch.launch(["learn"], 3, 1) == 75
    reports = {2: (2, "no GPU on n2")}
    with pytest.raises(InputError, match="no GPU on n2"):
        launch.launch(["learn"], 3, 1)
