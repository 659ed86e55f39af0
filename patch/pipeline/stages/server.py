"""Server that forks a process for each job, so that a job does not import torch, transformers and lm-eval again.

The imports take longer than most jobs of a small model. `start_server` runs the server; `run_in_server` in
`patch.pipeline.stages.client` hands it a job. The server has no threads, runs no job itself and touches no GPU, so
that a fork is safe. It ends when the process that started it ends, once its last job has ended.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from patch.pipeline.stages.client import Request, receive_request, send_status

# Imported before the first fork: the modules of the stages, and what they import only when a job needs it.
PRELOADED = (
    *(f"patch.pipeline.stages.{name}" for name in ("evaluate", "figures", "learn", "prune", "quantize", "tabulate")),
    "patch.evaluation.lm_eval_model",
    "lm_eval.evaluator",
    "lm_eval.tasks",
    "transformers.activations",
    "transformers.generation.utils",
    "transformers.modeling_utils",
)
_PR_SET_PDEATHSIG = 1


_started: list[subprocess.Popen] = []


def start_server() -> str:
    """Start a server for the jobs of this process, and return the path of its socket for `client.VARIABLE`.

    The server ends with this process, because its standard input then ends.
    """
    # In a session of its own, so that Ctrl-C in a terminal reaches a job once, through its client.
    server = subprocess.Popen(
        ["python", "-m", "patch.pipeline.stages.server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        text=True,
        start_new_session=True,
    )
    _started.append(server)
    return server.stdout.readline().strip()


def _preload() -> None:
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    # The memory allocator of pyarrow would start a thread.
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
    for name in PRELOADED:
        importlib.import_module(name)
    # transformers compiles the patterns of all families' weight names when it loads its first model.
    conversion = importlib.import_module("transformers.conversion_mapping")
    conversion.get_checkpoint_conversion_mapping("llama")
    # A garbage collection in a child would copy the pages that it shares with the server.
    gc.collect()
    gc.freeze()


class _Server:
    """Loop over new connections, signals for running jobs, and their ends."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._jobs: dict[int, socket.socket] = {}  # by the process id
        self._selector = selectors.DefaultSelector()
        self._ended, wakeup = os.pipe()
        os.set_blocking(self._ended, False)
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for source in (listener, sys.stdin, self._ended):
            self._selector.register(source, selectors.EVENT_READ)

    def serve(self) -> Request | None:
        """Return a request in each child, and None in the server once it is not needed any more."""
        while self._listener is not None or self._jobs:
            for key, _ in self._selector.select():
                if key.fileobj is sys.stdin:
                    self._close_listener()
                elif key.fileobj is self._listener:
                    if request := self._accept():
                        return request
                elif key.fileobj == self._ended:
                    os.read(self._ended, 4096)
                    self._reap()
                elif key.data in self._jobs:
                    self._forward(key.data)
        return None

    def _close_listener(self) -> None:
        self._selector.unregister(sys.stdin)
        self._selector.unregister(self._listener)
        self._listener.close()
        self._listener = None

    def _accept(self) -> Request | None:
        """Fork for a new connection; return its request in the child."""
        connection, _ = self._listener.accept()
        request = receive_request(connection)
        if request is None:
            connection.close()
            return None
        server = os.getpid()
        if child := os.fork():
            request.close()
            self._jobs[child] = connection
            self._selector.register(connection, selectors.EVENT_READ, child)
            connection.send(b"\0")
            return None
        self._leave(server, connection)
        return request

    def _leave(self, server: int, connection: socket.socket) -> None:
        """Undo in a child what only the server needs; it does not outlive a killed server, whose clients report it."""
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != server:
                os._exit(1)
        os.close(signal.set_wakeup_fd(-1))
        os.close(self._ended)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for used in (self._listener, connection, *self._jobs.values()):
            used.close()

    def _forward(self, child: int) -> None:
        """Send a job the signals that its client got; a client that was killed takes its job with it."""
        try:
            numbers = self._jobs[child].recv(64)
        except ConnectionError:
            numbers = b""
        for number in numbers or (signal.SIGKILL,):
            os.kill(child, number)
        if not numbers:
            self._selector.unregister(self._jobs[child])

    def _reap(self) -> None:
        while self._jobs:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            connection = self._jobs.pop(child)
            if connection in self._selector.get_map():
                self._selector.unregister(connection)
            send_status(connection, status)
            connection.close()


def _main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="patch-"))  # of this user alone
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "jobs"))
    listener.listen(128)
    # Clients wait from now on; a server that fails to start lets them go.
    print(folder / "jobs", flush=True)
    server = os.getpid()
    try:
        _preload()
        request = _Server(listener).serve()
    finally:
        if os.getpid() == server:
            shutil.rmtree(folder, ignore_errors=True)
    return request.run() if request else 0


if __name__ == "__main__":
    sys.exit(_main())
