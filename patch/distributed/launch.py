"""Launcher of a stage as several processes: on one node by `torchrun`'s agent, on several by `srun` and one agent each.

The launcher keeps a store on a port of its own. The agents find each other there, and the processes report there how
they end, since neither `torchrun` nor `srun` forwards a message, and both kill the rest when one process fails.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from patch.distributed.agent import VARIABLE, exit_status, first_cause, forward_signals, own_address, run_agent, tell
from patch.distributed.signals import EXIT_RESUMABLE
from patch.errors import InputError

if TYPE_CHECKING:
    from torch.distributed import TCPStore


def is_launched() -> bool:
    """Return whether this is one of the processes of a job."""
    return "RANK" in os.environ


def launch(arguments: Sequence[str], processes: int, nodes: int) -> int:
    """Run a stage as several processes, whose output is that of this process.

    Args:
        arguments: the stage's command line.
        processes: number of processes on each node.
        nodes: number of nodes, including this one.

    Returns:
        The exit code: `EXIT_RESUMABLE` if the processes were stopped and have saved, 128 + n if signal n ended one.

    Raises:
        InputError: one of the processes raised it, or several nodes are asked for outside a SLURM job.
    """
    from torch.distributed import TCPStore

    if nodes > 1 and not ("SLURM_JOB_ID" in os.environ and shutil.which("srun")):
        raise InputError(
            f"`resources.learn_nodes` is {nodes}, and more than one need a SLURM job with `srun`; set it to 1, or "
            "run on a cluster"
        )
    host = own_address() if nodes > 1 else "localhost"
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    os.environ[VARIABLE] = f"{host}:{store.port}"
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    os.environ["OMP_NUM_THREADS"] = str(max(1, threads // processes))
    if nodes == 1:
        code = run_agent(arguments, processes, nodes)
    else:
        agent = [sys.executable, "-m", "patch.distributed.agent", str(processes), str(nodes), *arguments]
        code = _run_srun(srun_command(nodes, agent), srun_environment(os.environ))
        # `srun` returns the highest exit code, which may be that of an agent that it has ended itself.
        failed = [told for told in _told(store, "agent", nodes) if told]
        code = first_cause(failed) if failed else code
    ends = _told(store, "process", processes * nodes)
    for end in ends:
        if end["message"]:
            raise InputError(end["message"])
    return EXIT_RESUMABLE if ends else exit_status(code)


def _told(store: TCPStore, who: str, count: int) -> list[Any]:
    """Return the reports of those processes or agents that made one, in order."""
    keys = [f"{who}/{number}" for number in range(count)]
    return [json.loads(store.get(key)) for key in keys if store.check([key])]


def report_end(code: int, message: str = "") -> bool:
    """Report to the launcher how this process ends, by `EXIT_RESUMABLE` or an `InputError`.

    Returns:
        Whether a launcher has received the report.
    """
    if not is_launched() or VARIABLE not in os.environ:
        return False
    return tell(f"process/{os.environ['RANK']}", {"code": code, "message": message})


def srun_command(nodes: int, command: Sequence[str]) -> list[str]:
    """Return an `srun` call that runs ``command`` once on each node of the job, with all the job has there."""
    return [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        # The launcher may be a step itself, one that holds the job's CPUs, memory and GPUs: share them. A step sees
        # all GPUs of its job unless it asks for others; asking again could contradict how the job asked.
        "--overlap",
        # All of the job's memory on a node, also where the job asked for it by CPU or by GPU.
        "--mem=0",
        # The mask of an outer step, which is in the environment, is for the CPUs of its own node.
        "--cpu-bind=none",
        # The environment, also where the job itself was submitted without one.
        "--export=ALL",
        "--kill-on-bad-exit=1",
        *command,
    ]


def srun_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for `srun` within a job."""
    # With `none`, which some clusters set, a step gets no GPU.
    changed = {name: value for name, value in environment.items() if name != "SLURM_STEP_GRES"}
    if "SLURM_CPUS_PER_TASK" in changed:
        # Since SLURM 22.05 a step does not inherit the job's CPUs per task.
        changed["SRUN_CPUS_PER_TASK"] = changed["SLURM_CPUS_PER_TASK"]
    return changed


def _run_srun(command: Sequence[str], environment: Mapping[str, str]) -> int:
    srun = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    # At a SIGTERM `srun` kills its tasks; it forwards other signals.
    forward_signals(lambda: srun.poll() is not None, lambda: [srun.pid], signal.SIGUSR1)
    return srun.returncode
