"""Tests of the test cluster against its documented behaviour."""

import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cluster import Cluster, open_files

ROOT = Path(__file__).parents[2]
# Takes 200 MB and sleeps.
GREEDY = f"{sys.executable} -c 'import time; hoard = bytearray(200 << 20); time.sleep(60)'"


def _submit(cluster: Cluster, folder: Path, *options: str) -> str:
    return cluster.submit(f"--output={folder}/%a.txt", *options)


def _state(cluster: Cluster, job: str) -> str:
    return cluster.job(job).state


def _wait(cluster: Cluster, job: str, state: str) -> None:
    cluster.wait_for(lambda: _state(cluster, job) == state, 30, f"job {job} to be {state}")


def _listeners(pids: set[int]) -> Iterator[str]:
    """Return the addresses of the TCP sockets on which these processes listen."""
    inodes = set()
    for pid in pids:
        inodes.update(re.findall(r"socket:\[(\d+)\]", "\n".join(open_files(pid))))
    for family, size in (("tcp", 4), ("tcp6", 16)):
        for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = fields = line.split()
            if state == "0A" and fields[9] in inodes:
                words = bytes.fromhex(local.partition(":")[0])
                number = b"".join(words[place : place + 4][::-1] for place in range(0, size, 4))
                yield str(ipaddress.ip_address(number))


def test_a_job_sees_the_gpus_it_asked_for(cluster: Cluster, tmp_path: Path) -> None:
    job = _submit(cluster, tmp_path, "--gpus=2", "--wrap=echo $CUDA_VISIBLE_DEVICES $SLURM_JOB_GPUS; srun --gpus=1 env")
    _wait(cluster, job, "COMPLETED")
    (output,) = tmp_path.iterdir()
    assert output.read_text().startswith("0,1 0,1\n")
    assert "\nCUDA_VISIBLE_DEVICES=0\n" in output.read_text()
    assert cluster.node_of(job) in ("n1", "n2")


def test_an_array_runs_each_task_once(cluster: Cluster, tmp_path: Path) -> None:
    job = _submit(cluster, tmp_path, "--array=0-3", "--wrap=echo task $SLURM_ARRAY_TASK_ID")
    cluster.wait_idle()
    tasks = {known.id: known.state for known in cluster.jobs() if known.id.startswith(f"{job}_")}
    assert tasks == {f"{job}_{task}": "COMPLETED" for task in range(4)}
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {f"{n}.txt": f"task {n}\n" for n in range(4)}


def test_the_high_partition_takes_the_place_of_a_low_job_which_runs_again(cluster: Cluster, tmp_path: Path) -> None:
    low = _submit(cluster, tmp_path, "--nodes=2", "--gpus-per-node=4", "--wrap=sleep 60")
    _wait(cluster, low, "RUNNING")
    high = _submit(cluster, tmp_path, "--partition=high", "--gpus=1", "--wrap=sleep 1")
    _wait(cluster, low, "PENDING")
    assert cluster.job(low).reason in ("None", "BeginTime")
    _wait(cluster, high, "COMPLETED")
    _wait(cluster, low, "RUNNING")
    assert cluster.job(low).restarts == 1


def test_a_restarted_controller_knows_its_jobs(cluster: Cluster, tmp_path: Path) -> None:
    job = _submit(cluster, tmp_path, "--wrap=sleep 60")
    _wait(cluster, job, "RUNNING")
    cluster.stop_controller()
    assert cluster.pid("slurmctld") is None
    assert "Unable to contact slurm controller" in cluster.run("squeue", check=False).stderr
    cluster.start_controller()
    assert _state(cluster, job) == "RUNNING"
    cluster.run("scancel", job)
    _wait(cluster, job, "CANCELLED")


def test_a_job_on_a_node_that_loses_power_runs_on_the_other(cluster: Cluster, tmp_path: Path) -> None:
    job = _submit(cluster, tmp_path, "--wrap=setsid sleep 61 & sleep 62")
    _wait(cluster, job, "RUNNING")
    node = cluster.node_of(job)
    cluster.wait_for(lambda: len(cluster.processes(node)) >= 5, 5, "slurmd, slurmstepd, a shell and two sleeps")
    cluster.kill_node(node)
    assert cluster.processes(node) == set()
    # The controller would see it by itself, in about 20 seconds.
    cluster.set_node(node, "down", "no power")
    cluster.wait_for(lambda: cluster.job(job)[1:5] == ("RUNNING", "None", {"n1": "n2", "n2": "n1"}[node], 1))
    cluster.start_node(node)
    assert cluster.node_states()[node] == "idle"


def test_too_much_memory_ends_a_job(cluster: Cluster, tmp_path: Path) -> None:
    job = _submit(cluster, tmp_path, "--mem=100", f"--wrap={GREEDY}")
    _wait(cluster, job, "FAILED")
    assert cluster.job(job).reason == "RaisedSignal:9(Killed)"
    (output,) = tmp_path.iterdir()
    assert "exceeded memory limit" in output.read_text()


def test_everything_listens_on_the_address_of_the_host_alone(cluster: Cluster, tmp_path: Path) -> None:
    """The address to which the host's own name resolves, on most machines the loopback."""
    job = _submit(cluster, tmp_path, "--wrap=srun sleep 60")
    _wait(cluster, job, "RUNNING")
    # One each for slurmctld and two slurmd; srun has several.
    cluster.wait_for(lambda: len(list(_listeners(cluster.processes()))) > 3, 5, "srun to listen")
    assert set(_listeners(cluster.processes())) == {socket.gethostbyname(socket.gethostname())}


def test_calls_are_counted(cluster: Cluster) -> None:
    before = {name: cluster.calls(name) for name in ("squeue", "sinfo")}
    cluster.run("squeue", "--me")
    cluster.run("squeue", "--format=two\nlines")
    cluster.jobs()
    assert {name: cluster.calls(name) - count for name, count in before.items()} == {"squeue": 2, "sinfo": 0}
    assert cluster.calls_log.read_text().splitlines()[-3].endswith(" squeue --me")


def test_clients_fail_on_request(cluster: Cluster) -> None:
    def sinfo() -> tuple[int, str]:
        run = cluster.run("sinfo", check=False)
        return run.returncode, run.stderr

    cluster.fail("sinfo", "it's away", exit_code=3, times=2)
    assert [sinfo() for _ in range(3)] == [(3, "it's away\n"), (3, "it's away\n"), (0, "")]
    cluster.fail("sinfo", "away", seconds=0.5)
    assert sinfo() == (1, "away\n")
    assert cluster.run("squeue").returncode == 0
    time.sleep(0.5)
    assert sinfo() == (0, "")
    cluster.fail("sinfo", "gone")
    assert {sinfo() for _ in range(3)} == {(1, "gone\n")}
    cluster.heal("sinfo")
    assert sinfo() == (0, "")
    with pytest.raises(ValueError, match="sinfoo is none of"):
        cluster.fail("sinfoo", "gone")


def test_clients_hang_on_request_and_can_be_killed(cluster: Cluster) -> None:
    cluster.hang("squeue", 0.5)
    start = time.monotonic()
    assert "JOBID" in cluster.run("squeue").stdout
    assert 0.5 < time.monotonic() - start < 5
    cluster.hang("squeue", 60)
    environment = os.environ | cluster.env
    with subprocess.Popen(["squeue"], env=environment, stdout=subprocess.PIPE) as hanging:
        time.sleep(0.3)
        hanging.kill()
        # No child holds the other end of the pipe.
        assert hanging.communicate(timeout=5) == (b"", None)


def test_nothing_is_left_after_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Cluster() as cluster:
        job = _submit(cluster, tmp_path, "--wrap=trap '' TERM; setsid sleep 63 & sleep 64; sleep 65")
        _wait(cluster, job, "RUNNING")
        cluster.wait_for(lambda: len(cluster.processes()) >= 8, 5, "four daemons, slurmscriptd, a step and its job")
        pids = cluster.processes()
        _ = 1 / 0
    assert cluster.processes() == set()
    assert not any(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids if Path(f"/proc/{pid}").exists())
    assert not cluster.folder.exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_after_a_signal(signum: int) -> None:
    lines = (
        "import time; from tests.slurm.cluster import Cluster",
        "with Cluster() as cluster: print(cluster.folder, flush=True); time.sleep(60)",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
        cluster = Cluster(run.stdout.readline().strip())
        assert cluster.processes()
        run.send_signal(signum)
        assert run.wait(10) == -signum
    assert cluster.processes() == set()
    assert not cluster.folder.exists()


def test_a_cluster_for_a_shell() -> None:
    folder = Path(tempfile.gettempdir()) / f"patch-slurm-shell-{os.getpid()}"

    def command(action: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-m", "tests.slurm.cluster", action, "--folder", str(folder)]
        return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)

    assert (command("status").returncode, command("down").returncode) == (1, 0)
    try:
        up, again = command("up"), command("up")
        assert up.returncode == 0, up.stderr
        assert up.stdout == again.stdout
        run = subprocess.run(["sh", "-c", f"{up.stdout}\nsinfo --noheader"], capture_output=True, text=True)
        assert "n[1-2]" in run.stdout
        status = command("status")
        assert status.returncode == 0 and status.stdout.count("runs as process") == 4
    finally:
        down = command("down")
    assert down.returncode == 0, down.stderr
    assert command("status").stdout.count("does not run") == 4
