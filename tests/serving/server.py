"""A `vllm serve` process on a free port of the loopback interface, and its client."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-serving"
# A busy machine takes minutes to import vLLM in each of its three processes.
STARTUP_SECONDS = 900
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Binding to cores would reserve one of them for the frontend.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}


class ServerFailed(RuntimeError):
    """Server that ended or did not start in time; the message is the end of its log."""


def _command(folder: Path, *options: str) -> list[str]:
    return [str(ENVIRONMENT / "bin/vllm"), "serve", str(folder), "--served-model-name", "model", *options]


def _environment() -> dict[str, str]:
    # Packages on PYTHONPATH belong to the environment of the tests.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return inherited | SETTINGS | {"PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(folder: Path, log: Path, *options: str) -> Iterator[str]:
    """Serve a model folder until the end of the block.

    Args:
        folder: the model folder.
        log: file of the server's output.
        options: further options of `vllm serve`.

    Yields:
        The URL of the OpenAI API.

    Raises:
        ServerFailed: the server ended before it was ready.
    """
    port = _free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            _command(folder, "--host", "127.0.0.1", "--port", str(port), *options),
            env=_environment(),
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        _stop(process)


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    # A proxy of the environment does not lead to this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + STARTUP_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            opener.open(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise ServerFailed(log.read_text(errors="replace")[-20_000:])


def _stop(process: subprocess.Popen) -> None:
    """End the server and the processes that it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
