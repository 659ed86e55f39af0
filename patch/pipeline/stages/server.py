"""Server that forks a process for each job, so that a job does not import torch, transformers and lm-eval again.

The imports take longer than most jobs of a small model. `start_server` runs the server; `run_in_server` in
`patch.pipeline.stages.client` hands it a job. The server has no threads, runs no job itself and touches no GPU, so
that a fork is safe. It ends when the process that started it ends, once its last job has ended.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import multiprocessing
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import NoReturn

from patch.pipeline.stages.client import Request, receive_request, send_code

# Imported before the first fork: the modules of the stages, and what they import only when a job needs it.
PRELOADED = (
    *(
        f"patch.pipeline.stages.{name}"
        for name in ("evaluate", "figures", "learn", "prune", "quantize", "speedup", "tabulate")
    ),
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
    """Loop over new connections, signals for running jobs, and their ends.

    A job is a process of `multiprocessing`, which leaves without the interpreter's clean-up of all modules. That would
    copy the memory that the job shares with the server.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._open = True
        self._jobs = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(sys.stdin, selectors.EVENT_READ, self._close)

    def serve(self) -> None:
        """Run jobs until the standard input has ended, and the last job too."""
        while self._open or self._jobs:
            for key, _ in self._selector.select():
                if key.fd in self._selector.get_map():  # not removed by an earlier event
                    key.data()

    def _close(self) -> None:
        self._selector.unregister(sys.stdin)
        self._selector.unregister(self._listener)
        self._open = False

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        request = receive_request(connection)
        if request is None:
            connection.close()
            return
        job = multiprocessing.get_context("fork").Process(target=self._run, args=(request, connection, os.getpid()))
        job.start()
        self._jobs += 1
        request.close()
        self._selector.register(connection, selectors.EVENT_READ, partial(self._forward, job, connection))
        self._selector.register(job.sentinel, selectors.EVENT_READ, partial(self._end, job, connection))
        connection.send(b"\0")

    def _run(self, request: Request, connection: socket.socket, server: int) -> NoReturn:
        """Run a job in a new process; it does not outlive a killed server, which could not report its end."""
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != server:
                os._exit(1)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        connection.close()
        self._selector.close()
        sys.exit(request.run())

    def _forward(self, job: multiprocessing.Process, connection: socket.socket) -> None:
        """Send a job the signals that its client got; a client that was killed takes its job with it."""
        try:
            numbers = connection.recv(64)
        except ConnectionError:
            numbers = b""
        for number in numbers or (signal.SIGKILL,):
            if job.is_alive():
                os.kill(job.pid, number)
        if not numbers:
            self._selector.unregister(connection)

    def _end(self, job: multiprocessing.Process, connection: socket.socket) -> None:
        self._selector.unregister(job.sentinel)
        if connection in self._selector.get_map():
            self._selector.unregister(connection)
        job.join()
        send_code(connection, job.exitcode)
        connection.close()
        self._jobs -= 1


def _main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="patch-"))  # of this user alone
    try:
        listener = socket.socket(socket.AF_UNIX)
        # A path of more than about 100 bytes is refused; without a server, each job has a process of its own.
        listener.bind(str(folder / "jobs"))
        listener.listen(128)
        # Clients wait from now on; a server that fails to start lets them go.
        print(folder / "jobs", flush=True)
        _preload()
        _Server(listener).serve()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _main()
