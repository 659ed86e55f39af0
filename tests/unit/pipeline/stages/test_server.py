"""Tests of the server that forks a process for each job, by real processes with a stage of the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from patch.pipeline.stages.client import VARIABLE

# A server whose jobs are Python statements, which the arguments hold, and that preloads nothing.
SERVER = """
import sys
from patch.pipeline.stages import __main__ as stages, server
def run(arguments):
    exec(arguments[0], {})
    return 0
stages.main = run
server._preload = lambda: None
server._main()
"""
CLIENT = "import sys; from patch.pipeline.stages.client import run_in_server; sys.exit(run_in_server(sys.argv[1:]))"


@pytest.fixture
def server() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    process.path = Path(process.stdout.readline().strip())
    yield process
    process.stdin.close()
    process.wait(timeout=20)


def client(server: subprocess.Popen, code: str, log: Path, **options: object) -> subprocess.Popen:
    """Start a client with a job, whose output is a file, as in the workflow."""
    environment = {**os.environ, VARIABLE: str(server.path), **options.pop("environment", {})}
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT, code], stdout=file, stderr=file, env=environment, **options
        )


def wait_for(log: Path, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def test_a_job_has_the_folder_environment_and_output_of_its_client(server, tmp_path):
    code = f"import os; print(os.getcwd(), os.environ['COLOUR'], os.environ.get('{VARIABLE}'), os.getppid())"
    log = tmp_path / "log"
    assert client(server, code, log, cwd=tmp_path, environment={"COLOUR": "red"}).wait(20) == 0
    assert log.read_text().split() == [str(tmp_path), "red", "None", str(server.pid)]


def test_the_exit_code_and_the_traceback_are_those_of_the_job(server, tmp_path):
    assert client(server, "raise SystemExit(75)", tmp_path / "log").wait(20) == 75
    assert client(server, "raise ValueError('broken')", tmp_path / "log").wait(20) == 1
    assert "ValueError: broken" in (tmp_path / "log").read_text()


def test_jobs_run_side_by_side(server, tmp_path):
    jobs = [client(server, f"import time; time.sleep(0.5); print({n})", tmp_path / f"{n}") for n in range(4)]
    assert [job.wait(20) for job in jobs] == [0] * 4
    assert [(tmp_path / f"{n}").read_text() for n in range(4)] == [f"{n}\n" for n in range(4)]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_job_gets_the_signals_of_its_client(server, tmp_path, number):
    code = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(75))\n"
        "print('ready', flush=True); time.sleep(20)"
    )
    job = client(server, code, tmp_path / "log")
    wait_for(tmp_path / "log", "ready")
    job.send_signal(number)
    assert job.wait(20) == 75


def test_a_client_ends_by_the_signal_that_ended_its_job(server, tmp_path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert client(server, code, tmp_path / "log").wait(20) == -signal.SIGKILL
    job = client(server, "import time; print('ready', flush=True); time.sleep(20)", tmp_path / "log")
    wait_for(tmp_path / "log", "ready")
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == -signal.SIGTERM


def ended(log: Path) -> bool:
    """Return whether the process whose id is the log has ended, within a few seconds."""
    number = int(log.read_text())
    for _ in range(200):
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


RUNNING = "import os, time; print(os.getpid(), flush=True); time.sleep(20)"


def test_a_killed_client_takes_its_job_with_it(server, tmp_path):
    job = client(server, RUNNING, tmp_path / "log")
    wait_for(tmp_path / "log", "\n")
    job.kill()
    assert job.wait(20) == -signal.SIGKILL
    assert ended(tmp_path / "log")
    assert client(server, "pass", tmp_path / "other").wait(20) == 0  # the server lives


@pytest.mark.skipif(sys.platform != "linux", reason="needs the signal of a parent's death")
def test_a_killed_server_takes_its_jobs_with_it_and_their_clients_fail(server, tmp_path):
    job = client(server, RUNNING, tmp_path / "log")
    wait_for(tmp_path / "log", "\n")
    server.kill()
    assert job.wait(20) == 1
    number, _, message = (tmp_path / "log").read_text().partition("\n")
    assert message == "error: the process that serves the jobs of this run was killed; run again\n"
    (tmp_path / "log").write_text(number)
    assert ended(tmp_path / "log")


def test_the_server_ends_with_its_parent_after_its_last_job(server, tmp_path):
    job = client(server, "import time; print('ready', flush=True); time.sleep(0.5); print('done')", tmp_path / "log")
    wait_for(tmp_path / "log", "ready")
    server.stdin.close()
    assert (job.wait(20), server.wait(20)) == (0, 0)
    assert (tmp_path / "log").read_text() == "ready\ndone\n"
    assert not server.path.parent.exists()


def test_without_a_server_the_stage_runs_in_its_own_process(tmp_path):
    for path in ("", str(tmp_path / "gone")):
        command = [sys.executable, "-m", "patch.pipeline.stages", "evaluate", "--settings", str(tmp_path / "none.json")]
        result = subprocess.run(command, env={**os.environ, VARIABLE: path}, capture_output=True, text=True)
        assert (result.returncode, "none.json" in result.stderr) == (2, True)


def test_a_temporary_folder_with_a_long_name_means_no_server(tmp_path):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    environment = os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", SERVER], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, "path too long" in done.stderr, list(folder.iterdir())) == ("", True, [])


def test_the_socket_is_private_to_the_user(server):
    assert server.path.parent.stat().st_mode & 0o777 == 0o700


def test_the_preloaded_modules_start_no_thread():
    code = (
        "import os; from patch.pipeline.stages.server import _preload; _preload()\n"
        "print(len(os.listdir('/proc/self/task')))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "1"
