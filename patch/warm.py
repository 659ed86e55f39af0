"""Start CPU stages from one process that has the libraries loaded.

Importing torch, transformers and lm-eval takes seconds; a grid of small models spends a third of its
time there. A server imports them once and forks for every stage, so that a stage starts in
milliseconds and the pages of the libraries are shared. It serves one Snakemake, on a Unix socket in a
private folder, and ends with it. Without a server a stage simply starts by itself.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from patch.signals import STOP

VARIABLE = "PATCH_WARM_SOCKET"
FORWARDED = (*STOP, signal.SIGINT)
PRELOADED = (
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.gemma3.modeling_gemma3",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "patch.stages.evaluate",
    "patch.stages.learn",
    "patch.stages.prune",
    "patch.stages.train",
    "patch.stages.update",
    "patch.stages.windows",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "lm_eval.tasks",
)


# -- the side of the workflow -------------------------------------------------------------------


def start_server() -> subprocess.Popen:
    """Start a server for this process and name its socket in the environment that jobs inherit."""
    path = Path(tempfile.mkdtemp(prefix="patch-warm-")) / "socket"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    os.environ[VARIABLE] = str(path)
    command = [sys.executable, "-m", "patch.warm", str(path), str(listener.fileno()), str(os.getpid())]
    server = subprocess.Popen(command, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL)
    listener.close()
    return server


# -- the side of a stage ------------------------------------------------------------------------


def run_warm(arguments: Sequence[str]) -> int | None:
    """Run a stage through the server; None where there is none.

    Signals that a scheduler sends are passed on to the stage.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except OSError:
        return None
    request = {"arguments": list(arguments), "folder": os.getcwd(), "environment": dict(os.environ)}
    socket.send_fds(connection, [b"\0"], [1, 2])
    for number in FORWARDED:
        signal.signal(number, lambda received, frame: connection.sendall(f"{int(received)}\n".encode()))
    connection.sendall(json.dumps(request).encode() + b"\n")
    try:
        answer = connection.makefile("rb").readline()
    except ConnectionError:
        answer = b""
    if not answer:
        print("error: the server of warm starts is gone, and this stage with it", file=sys.stderr)
    return int(answer) if answer else 1


# -- the server ---------------------------------------------------------------------------------


class _Server:
    def __init__(self, listener: socket.socket, parent: int, run: Callable[[Sequence[str]], int]) -> None:
        self.listener, self.parent, self.run = listener, parent, run
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)
        self.stages: dict[int, socket.socket] = {}

    def serve(self) -> None:
        while os.getppid() == self.parent:
            for key, _ in self.selector.select(timeout=0.05 if self.stages else 0.5):
                if key.fileobj is self.listener:
                    self._start(self.listener.accept()[0])
                else:
                    self._pass_signal(key.fileobj, key.data)
            self._collect()
        for pid in self.stages:
            os.kill(pid, signal.SIGTERM)

    def _start(self, connection: socket.socket) -> None:
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
        with connection.makefile("rb") as stream:
            request = json.loads(stream.readline())
        pid = os.fork()
        if pid == 0:
            self._become_stage(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        self.stages[pid] = connection
        self.selector.register(connection, selectors.EVENT_READ, pid)

    def _become_stage(self, request: dict, descriptors: list[int]) -> None:
        code = 1
        try:
            for other in [self.listener, *self.stages.values()]:
                other.close()
            self.selector.close()
            os.chdir(request["folder"])
            os.environ.clear()
            os.environ.update(request["environment"])
            for target, descriptor in zip((1, 2), descriptors, strict=True):
                os.dup2(descriptor, target)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = self.run(request["arguments"])
        except KeyboardInterrupt:
            code = 128 + signal.SIGINT
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:  # noqa: BLE001 - a stage must never come back as a second server
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _pass_signal(self, connection: socket.socket, pid: int) -> None:
        try:
            received = connection.recv(64)
        except ConnectionError:
            received = b""
        for number in received.split():
            os.kill(pid, int(number))
        if not received:  # the client is gone, and with it whoever waits for the stage
            self.selector.unregister(connection)
            os.kill(pid, signal.SIGTERM)

    def _collect(self) -> None:
        for pid, connection in list(self.stages.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            del self.stages[pid]
            code = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(KeyError):
                self.selector.unregister(connection)
            with contextlib.suppress(OSError):
                connection.sendall(f"{code if code >= 0 else 128 - code}\n".encode())
            connection.close()


def _main() -> None:
    path, descriptor, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    # Ctrl-C reaches the whole terminal; Snakemake and the clients decide what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    try:
        for module in PRELOADED:
            importlib.import_module(module)
        from patch.stages._run import run_stage

        _Server(socket.socket(fileno=descriptor), parent, run_stage).serve()
    finally:
        path.unlink(missing_ok=True)
        path.parent.rmdir()


if __name__ == "__main__":
    _main()
