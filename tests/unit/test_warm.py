"""Stages that are forked from a server behave as if they had been started by themselves."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from patch import warm


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen]:
    process = warm.start_server()
    yield process
    process.terminate()
    process.wait()
    del os.environ[warm.VARIABLE]


def stage(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "patch.stages", *arguments]
    root = str(Path(warm.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)


def test_exit_code_and_message_come_back(server: subprocess.Popen) -> None:
    run = stage("windows", "--spec", "{}", "--corpus", "a", "--tokenizer", "b", "--out", "c")
    assert run.returncode == 2
    assert "`spec.kind` is missing" in run.stderr and "Traceback" not in run.stderr


def test_a_stage_runs_in_the_callers_folder(server: subprocess.Popen, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/train.jsonl").write_text('{"text": "a b c a b c"}\n' * 50)
    (tmp_path / "corpus/manifest.json").write_text("{}")
    spec = '{"upstream": "", "vocab_size": 300}'
    run = stage("tokenizer", "--spec", spec, "--corpus", "corpus", "--out", "tokenizer", folder=tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "tokenizer/tokenizer.json").exists()


def test_a_signal_reaches_the_stage(server: subprocess.Popen, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    os.mkfifo(tmp_path / "corpus/train.jsonl")  # reading it waits for a writer that never comes
    (tmp_path / "corpus/manifest.json").write_text("{}")
    command = [sys.executable, "-m", "patch.stages", "tokenizer", "--spec", '{"upstream": "", "vocab_size": 300}']
    client = subprocess.Popen([*command, "--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / "out")])
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not children.read_text():
        time.sleep(0.1)
    time.sleep(1)
    client.send_signal(signal.SIGTERM)
    assert client.wait(timeout=60) == 128 + signal.SIGTERM
    assert not children.read_text()


def test_every_stop_signal_is_passed_on() -> None:
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2} == set(warm.FORWARDED)


def test_without_a_server_a_stage_starts_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(warm.VARIABLE, str(tmp_path / "nobody"))
    assert warm.run_warm(["windows"]) is None
    monkeypatch.delenv(warm.VARIABLE)
    assert warm.run_warm(["windows"]) is None


def test_the_server_ends_with_its_parent() -> None:
    code = "import patch.warm; print(patch.warm.start_server().pid)"
    parent = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pid, deadline = int(parent.stdout), time.monotonic() + 60
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        time.sleep(0.2)
    assert not Path(f"/proc/{pid}").exists()
