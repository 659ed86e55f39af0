"""The processes of a stage on one node, started by `torchrun`'s agent, and signal forwarding to them.

Agents and processes find each other through a store that the launcher keeps (see `patch.distributed.launch`), and
report in it how they end.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from patch.distributed.signals import HELD, STOP, take_held

if TYPE_CHECKING:
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

# Address of the launcher's store, for its agents and processes.
VARIABLE = "PATCH_LAUNCHER"
# Signals that a launcher and its agents forward.
FORWARDED = (*STOP, signal.SIGINT, signal.SIGHUP)


def run_agent(arguments: Sequence[str], processes: int, nodes: int) -> int:
    """Run this node's processes of a stage until all have ended; return the exit code, negative for a signal."""
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    endpoint = os.environ[VARIABLE]
    address = own_address() if nodes > 1 else "localhost"
    # The agent's banner would bury the message of the process that failed.
    _silence("torch.distributed.elastic")
    with tempfile.TemporaryDirectory(prefix="patch-launch-") as logs:
        rendezvous = RendezvousParameters("c10d", endpoint, "patch", nodes, nodes, address, is_host=False)
        worker = WorkerSpec(
            role="stage",
            local_world_size=processes,
            rdzv_handler=get_rendezvous_handler(rendezvous),
            entrypoint=sys.executable,
            # The agent treats `$` as the start of a variable.
            args=("-m", "patch.pipeline.stages", *(argument.replace("$", "$$") for argument in arguments)),
            max_restarts=0,
            local_addr=address,
        )
        agent = LocalElasticAgent(worker, DefaultLogsSpecs(logs))
        # In the main thread the agent would handle signals itself, and kill after 30 s what still saves.
        with ThreadPoolExecutor(1, initializer=block_held) as pool:
            running = pool.submit(agent.run)
            forward_signals(running.done, lambda: _started(agent), signal.SIGTERM)
        result = running.result()
    if not result.is_failed():
        return 0
    code = first_cause([failure.exitcode for failure in result.failures.values()])
    if code < 0 and code != -signal.SIGTERM:
        why = " (out of memory?)" if code == -signal.SIGKILL else ""
        name = signal.Signals(-code).name
        print(f"error: a process on {socket.gethostname()} was ended by {name}{why}", file=sys.stderr, flush=True)
    return code


def _started(agent: LocalElasticAgent) -> list[int]:
    return [worker.id for worker in agent.get_worker_group().workers if worker.id]


def _silence(package: str) -> None:
    """Silence every logger of a package, since each may have a level of its own."""
    for name in [package, *logging.root.manager.loggerDict]:
        if name == package or name.startswith(f"{package}."):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def first_cause(codes: Sequence[int]) -> int:
    """Return the exit code that caused the others, from those of the failed processes; negative for a signal.

    A process that loses a peer raises an error, and the agent ends the rest by SIGTERM.
    """
    killed = [code for code in codes if code < 0 and code != -signal.SIGTERM]
    failed = [code for code in codes if code > 0]
    return (killed or failed or list(codes))[0]


def exit_status(code: int) -> int:
    """Return the exit status of a code: 128 + n for signal n."""
    return code if code >= 0 else 128 - code


def forward_signals(ended: Callable[[], bool], processes: Callable[[], list[int]], others: int) -> None:
    """Forward incoming signals to other processes, once those have started and until they have ended.

    After that, signals have no effect: only the report of how the processes ended is left to do.

    Args:
        ended: returns whether the processes have ended.
        processes: returns their ids, none before they have started.
        others: the signal that is sent in place of SIGTERM, SIGINT and SIGHUP.
    """
    received = [signal.SIGUSR1] if take_held() else []
    for number in FORWARDED:
        signal.signal(number, lambda number, frame: received.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
    while not ended():
        time.sleep(0.1)
        while received and (there := processes()):
            number = received.pop(0)
            for process in there:
                with suppress(ProcessLookupError):
                    os.kill(process, number if number in HELD else others)


def block_held() -> None:
    """Block SIGUSR1 and SIGUSR2 in the processes that this thread starts.

    These signals are then neither lost nor fatal before a process handles them (see
    `patch.distributed.signals.hold_signals`).
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def own_address() -> str:
    """Return the address of this node for the others: its host name where that resolves, else 127.0.0.1."""
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return "127.0.0.1"
    return name


def tell(key: str, value: Any) -> bool:
    """Put a JSON value into the launcher's store; return whether the launcher was reached."""
    from torch.distributed import TCPStore

    host, port = os.environ[VARIABLE].rsplit(":", 1)
    try:
        store = TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=30))
        store.set(key, json.dumps(value))
    except RuntimeError:
        return False
    return True


def _main() -> int:
    """Run the agent of one node of several."""
    processes, nodes, *arguments = sys.argv[1:]
    block_held()
    code = run_agent(arguments, int(processes), int(nodes))
    tell(f"agent/{os.environ['SLURM_NODEID']}", code)
    return exit_status(code)


if __name__ == "__main__":
    sys.exit(_main())
