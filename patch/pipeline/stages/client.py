"""Client of the server of stages: a process that stands for a job which a child of the server runs.

The child has the arguments, folder, environment and open files of the client, gets the signals that the client gets,
and the client ends as the child has ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

# Path of the server's socket.
VARIABLE = "PATCH_STAGE_SERVER"
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Seconds that the server waits for the rest of a request.
_PATIENCE = 10


@dataclass(frozen=True)
class Request:
    """Arguments, working folder, environment and standard streams of a job."""

    arguments: list[str]
    folder: str
    environment: dict[str, str]
    streams: tuple[int, ...]

    def close(self) -> None:
        """Close the streams, which the server does not use."""
        for stream in self.streams:
            os.close(stream)

    def run(self) -> int:
        """Run the job in this process, which becomes like the client; return the exit code."""
        for number, stream in enumerate(self.streams):
            os.dup2(stream, number)
        self.close()
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)
        tempfile.tempdir = None  # of the server's environment
        sys.argv[1:] = self.arguments
        from patch.pipeline.stages.__main__ import main

        return main(self.arguments)


def run_in_server(arguments: Sequence[str]) -> int | None:
    """Run a job in the server that the environment names; return its exit code.

    Returns:
        None without a server, or if it cannot be reached: the job then runs in this process.
    """
    path = os.environ.pop(VARIABLE, None)
    if not path:
        return None
    connection = socket.socket(socket.AF_UNIX)
    content = {"arguments": list(arguments), "folder": os.getcwd(), "environment": dict(os.environ)}
    try:
        connection.connect(path)
        # Signals wait until there is a child to forward them to.
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        socket.send_fds(connection, [b"\0"], [0, 1, 2])
        connection.sendall(json.dumps(content).encode() + b"\n")
        accepted = connection.recv(1)
    except OSError:
        accepted = b""
    if not accepted:
        connection.close()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        return None
    for number in FORWARDED:
        signal.signal(number, lambda number, frame: connection.send(bytes([number])))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    return _end(connection)


def _end(connection: socket.socket) -> int:
    """Wait for the job; return its exit code, or end by the signal that has ended it."""
    answer = b""
    while part := connection.recv(64):
        answer += part
    if not answer:
        print("error: the process that serves the jobs of this run was killed; run again", file=sys.stderr, flush=True)
        return 1
    code = int(answer)
    if code < 0:
        if -code != signal.SIGKILL:  # its action cannot be set
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def receive_request(connection: socket.socket) -> Request | None:
    """Return the request of a client, or None if it is incomplete."""
    connection.settimeout(_PATIENCE)
    streams: list[int] = []
    try:
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile("rb") as file:
            content = json.loads(file.readline())
    except (OSError, ValueError):
        for stream in streams:
            os.close(stream)
        return None
    connection.settimeout(None)
    return Request(**content, streams=tuple(streams))


def send_code(connection: socket.socket, code: int) -> None:
    """Send the exit code of a job, negative for a signal; a client that was killed does not need it."""
    with suppress(OSError):
        connection.sendall(str(code).encode())
