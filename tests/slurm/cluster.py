"""Disposable SLURM cluster on this machine for tests: real daemons, two nodes, simulated GPUs.

    with Cluster() as cluster:
        job = cluster.submit("--gpus=2", "--wrap", "echo $CUDA_VISIBLE_DEVICES")
        cluster.wait_for(lambda: cluster.job(job).state == "COMPLETED")

or, from a shell at the repository's root:

    eval "$(python -m tests.slurm.cluster up)"
    sbatch --gpus=2 --wrap 'echo $CUDA_VISIBLE_DEVICES'
    python -m tests.slurm.cluster down

It needs `slurmctld`, `slurmd`, the clients and `munged` (Debian: slurmctld slurmd slurm-client munge; `require_slurm`
installs them as root), but no running service, no systemd, no cgroups, and no file outside its own folder. As root,
munged runs as the user `munge`; as another user everything runs as that user, jobs too.

It has the nodes n1 and n2, each with 2 CPUs, 4000 MB and 4 GPUs of type `fake`; the partitions `low` (the default),
`high`, which preempts it by requeueing, and `short`, with a limit of one minute. `sacct` fails, since there is no
accounting. A job without a memory request gets 1000 MB for each CPU.

State and reason of ended jobs, as `squeue --states=all` shows them, and the delay:

| Event | State and reason | Seconds |
| --- | --- | --- |
| an exit status that is not 0 | FAILED NonZeroExitCode | at once |
| a signal on the batch script | FAILED RaisedSignal:9(Killed) | at once |
| more memory than requested | FAILED RaisedSignal:9(Killed), never OUT_OF_MEMORY | 1 to 2 |
| the same in an srun step | the step is killed, srun returns 137, and the script continues | 1 to 2 |
| the time limit | TIMEOUT TimeLimit | 60 to 90: SLURM checks every 30 seconds |
| `expire(job)` | the same | up to 30 |
| `scancel` | CANCELLED None | at once; 5 if SIGTERM is ignored |
| preemption, `scontrol requeue` | PENDING BeginTime (None for a second), then RUNNING | 6 until it runs again |
| preemption with `--no-requeue` | PREEMPTED None | at once |
| `kill_node(node)` | RUNNING, then PENDING BeginTime, then RUNNING | 14 to 19 until noticed, 6 more |
| the same with `--no-requeue` | NODE_FAIL NodeDown | 14 to 19 |
| `kill_node(node)`, `start_node(node)` | the same as without the start | 40 to 50 until noticed |
| `set_node(node, "down")` | PENDING BeginTime, then RUNNING | at once, 6 more |

A node that is set down stays down until `start_node` or `set_node(node, "resume")`; a node that did not answer returns
when it answers. Without a controller each client call fails after 4 seconds. After its start a controller may take 3
to 8 seconds to register jobs that ended meanwhile.

SLURM requires every socket to listen on the address that this host's name resolves to: the loopback on most machines.
Otherwise munge's key, new for each cluster, still keeps others out.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import pwd
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

NODES = ("n1", "n2")
CALLS_LOG = "calls.log"
CLIENTS = ("sbatch", "squeue", "scontrol", "sacct", "scancel", "sinfo", "srun")
# Debian package of each required program.
PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
LIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "STOPPED", "SUSPENDED")
# Socket names of job steps in the folder have up to 40 characters, and the kernel allows 107.
LONGEST_FOLDER = 64
SECONDS = 30  # for an operation that takes 2 s on an idle machine

SLURM_CONF = """\
ClusterName=patch-test
SlurmctldHost={host}({address})
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# The minimum that SLURM accepts. A requeued job waits a second longer than this, 121 s by default.
AuthInfo=socket={folder}/munge/socket,cred_expire={cred_expire}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=1

StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/state/slurmctld.pid
SlurmdPidFile={folder}/spool/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log

SlurmctldTimeout=10
SlurmdTimeout=10
MessageTimeout=5
TCPTimeout=2
KillWait=5
OverTimeLimit=0
# Tests ask for jobs that ended long before.
MinJobAge=3600
MaxArraySize={max_array_size}

SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill

# The sizes of the nodes do not depend on this machine.
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=DEFAULT CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=4000 Gres=gpu:fake:4
NodeName=n1 NodeHostname={host} NodeAddr={address} Port={ports[1]}
NodeName=n2 NodeHostname={host} NodeAddr={address} Port={ports[2]}
PartitionName=DEFAULT Nodes=n1,n2 OverSubscribe=NO DefMemPerCPU=1000
PartitionName=low Default=YES PriorityTier=1
PartitionName=high PriorityTier=10
PartitionName=short PriorityTier=1 MaxTime=1
"""

# The shim starts no process before the real command, and writes only the log.
SHIM = """\
#!/bin/sh
read -r now _ < /proc/uptime
printf '%s %s %s\\n' "$now" {name} "$*" >> {log}
[ -e {fault} ] && exec {python} -I {module} fault {fault} {command} "$@"
exec {command} "$@"
"""


class SlurmMissing(RuntimeError):
    """Error for a SLURM that is missing and cannot be installed."""


class Job(NamedTuple):
    """A job, or one task of an array, in squeue's output."""

    id: str  # 12, or 12_3 for a task
    state: str
    reason: str
    node: str  # empty while the job waits
    restarts: int
    partition: str
    name: str


class Cluster:
    """A cluster in `folder`, which is created at the start and removed at the end; a temporary folder by default.

    `cred_expire` is the lifetime of a job's credential in seconds, and so the delay of a requeued job.
    """

    def __init__(self, folder: Path | str | None = None, *, max_array_size: int = 1001, cred_expire: int = 5) -> None:
        self.folder = Path(folder or Path(tempfile.gettempdir()) / f"patch-slurm-{os.getpid()}-{os.urandom(3).hex()}")
        self.folder = self.folder.absolute()
        if len(str(self.folder)) > LONGEST_FOLDER or not re.fullmatch(r"[\w/.+-]+", str(self.folder)):
            raise ValueError(f"{self.folder}: SLURM needs a path of at most {LONGEST_FOLDER} plain characters")
        self.max_array_size = max_array_size
        self.cred_expire = cred_expire
        self.conf = self.folder / "slurm.conf"
        self.shims = self.folder / "shims"
        self.calls_log = self.folder / CALLS_LOG
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._handlers: dict[int, Any] = {}

    # --- Start and stop ---

    def __enter__(self) -> Cluster:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGHUP):
                self._handlers[signum] = signal.signal(signum, self._stop_and_die) or signal.SIG_DFL
        try:
            self.start()
        except BaseException:
            self._restore_handlers()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _stop_and_die(self, signum: int, frame: object) -> None:
        """Stop the cluster, then end by the signal."""
        self.stop()
        self._restore_handlers()
        os.kill(os.getpid(), signum)

    def start(self) -> None:
        """Write the configuration, start all daemons, and wait until both nodes accept jobs."""
        missing = [program for program in PACKAGES if not _which(program)]
        if missing:
            raise SlurmMissing(f"not installed: {', '.join(missing)}")
        if self.folder.exists() and any(self.folder.iterdir()):
            raise FileExistsError(f"{self.folder} is in use; stop that cluster first")
        try:
            self._write_files()
            self._start_munged()
            self._start_slurmctld()
            for node in NODES:
                self._start_slurmd(node)
            self._wait_for_nodes(NODES)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process of the cluster, jobs included, and remove its folder."""
        self._kill(self.processes)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write_files(self) -> None:
        # The user munge must be able to reach its socket.
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        for name in ("munge", "state", "spool/n1", "spool/n2", "log", "pids", "gpus", "shims", "faults"):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge/key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        if user := self._munge_user():
            shutil.chown(key, user)
            shutil.chown(key.parent, user)
        self.conf.write_text(
            SLURM_CONF.format(
                host=socket.gethostname().partition(".")[0],
                address=_address(),
                ports=_free_ports(1 + len(NODES)),
                user=pwd.getpwuid(os.geteuid()).pw_name,
                folder=self.folder,
                max_array_size=self.max_array_size,
                cred_expire=self.cred_expire,
            )
        )
        for gpu in (f"{node}-{number}" for node in NODES for number in range(4)):
            # Not plain files: SLURM counts those, but sets CUDA_VISIBLE_DEVICES only for devices.
            (self.folder / "gpus" / gpu).symlink_to(os.devnull)
        (self.folder / "gres.conf").write_text(
            "".join(f"NodeName={node} Name=gpu Type=fake File={self.folder}/gpus/{node}-[0-3]\n" for node in NODES)
        )
        # Otherwise slurmd does not start without mounted cgroups, as in some containers.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        self.calls_log.touch()
        for name in CLIENTS:
            if command := _which(name):
                shim = self.shims / name
                words = {
                    "name": name,
                    "log": self.calls_log,
                    "fault": self.folder / "faults" / name,
                    "python": shlex.quote(sys.executable),
                    "module": shlex.quote(str(Path(__file__).absolute())),
                    "command": command,
                }
                shim.write_text(SHIM.format(**words))
                shim.chmod(0o755)

    # --- Daemons ---

    @staticmethod
    def _munge_user() -> str | None:
        """Return the user of munged, None for the current user."""
        if os.geteuid() != 0:
            return None
        with contextlib.suppress(KeyError):
            return pwd.getpwnam("munge").pw_name
        return None

    def _start_munged(self) -> None:
        folder = self.folder / "munge"
        options = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
        command = ["munged", "--foreground", *(f"--{option}={folder / name}" for option, name in options.items())]
        self._start("munged", command, self._munge_user())
        self._await((folder / "socket").exists, "munged")

    def _start_slurmctld(self) -> None:
        self._start("slurmctld", ["slurmctld", "-D", "-f", str(self.conf)])
        self._await(lambda: self._client("scontrol", "ping").returncode == 0, "slurmctld")

    def _start_slurmd(self, node: str) -> None:
        self._start(node, ["slurmd", "-D", "-f", str(self.conf), "-N", node])

    def _start(self, name: str, command: list[str], user: str | None = None) -> None:
        """Start a daemon that outlives this process, and record its process id."""
        as_user = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
        program = _which(command[0])
        assert program, command
        with open(self.folder / f"log/{name}.out", "ab") as output:
            self._started[name] = subprocess.Popen(
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_plain_environment() | {"SLURM_CONF": str(self.conf)},
                cwd="/",
                start_new_session=True,
                **as_user,
            )
        (self.folder / "pids" / name).write_text(str(self._started[name].pid))

    def _await(self, ready: Callable[[], bool], name: str) -> None:
        """Wait until a started daemon is ready."""
        deadline = time.monotonic() + SECONDS
        while not ready():
            if self._started[name].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} does not start:\n{_tail(self.folder / f'log/{name}.out')}")
            time.sleep(0.02)

    def pid(self, name: str) -> int | None:
        """Return the process id of the daemon `slurmctld`, `munged`, `n1` or `n2`, None if it does not run."""
        try:
            pid = int((self.folder / "pids" / name).read_text())
        except (OSError, ValueError):
            return None
        return pid if self._is_daemon(_arguments(pid)) else None

    def _is_daemon(self, arguments: list[str]) -> bool:
        """Return whether a command line belongs to a daemon of this cluster."""
        program = Path(arguments[0]).name if arguments else ""
        if program == "munged":
            return f"--socket={self.folder}/munge/socket" in arguments
        return program in ("slurmctld", "slurmd") and str(self.conf) in arguments

    def _reap(self) -> None:
        for daemon in self._started.values():
            daemon.poll()

    def _kill(self, find: Callable[[], set[int]]) -> None:
        """Kill the processes that `find` returns until it returns none."""
        deadline = time.monotonic() + SECONDS
        quiet = 0
        # Repeated, because a process cannot be recognized while it executes another program.
        while quiet < 3:
            pids = find()
            quiet = 0 if pids else quiet + 1
            if time.monotonic() > deadline:
                raise RuntimeError(f"these processes do not die: {sorted(pids)}")
            # All stop before the first dies, so that none reports another one's end to the controller.
            for signum in (signal.SIGSTOP, signal.SIGKILL):
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signum)
            self._reap()
            time.sleep(0.01)

    def processes(self, node: str | None = None) -> set[int]:
        """Return all processes of the cluster or of a node: daemons, slurmstepd, and the processes of jobs."""
        parents, found = {}, set()
        for pid in _pids():
            parent = _parent(pid)
            if parent is not None and pid != os.getpid():
                parents[pid] = parent
                if self._belongs(pid, node):
                    found.add(pid)
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    def _belongs(self, pid: int, node: str | None) -> bool:
        arguments = _arguments(pid)
        if self._is_daemon(arguments):
            return node is None or arguments[-1] == node
        nodes = [node] if node else NODES
        environment = _environment(pid)
        ours = environment.get("SLURM_CONF") == str(self.conf)
        if arguments and Path(arguments[0]).name.startswith("slurmstepd"):
            # It soon overwrites its environment with its title; then its log identifies it.
            logs = {f"{self.folder}/log/{name}.log" for name in nodes}
            return not logs.isdisjoint(open_files(pid)) or (ours and not node)
        return ours and environment.get("SLURMD_NODENAME") in nodes

    # --- Faults of daemons ---

    def stop_controller(self) -> None:
        """Stop slurmctld with SIGTERM; its state is kept."""
        if pid := self.pid("slurmctld"):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + SECONDS
        while self.pid("slurmctld"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"slurmctld, process {pid}, does not stop")
            self._reap()
            time.sleep(0.02)

    def start_controller(self) -> None:
        """Start slurmctld from its state, and wait until it answers."""
        self._start_slurmctld()

    def kill_node(self, node: str) -> None:
        """Kill slurmd, slurmstepd and all processes of the jobs of a node at once, as a power failure does."""
        self._kill(lambda: self.processes(node))

    def start_node(self, node: str) -> None:
        """Start a node's slurmd, and wait until it accepts jobs, unless it is drained."""
        self._start_slurmd(node)
        if self.node_states()[node].startswith("down"):
            # A node that was set down does not return by itself; one that did not answer may have returned meanwhile.
            try:
                self.set_node(node, "resume")
            except RuntimeError:
                if self.node_states()[node].startswith("down"):
                    raise
        self._wait_for_nodes([node])

    def set_node(self, node: str, state: str, reason: str = "test") -> None:
        """Set a node's state: drain, down, resume."""
        self._client("scontrol", "update", f"NodeName={node}", f"State={state}", f"Reason={reason}", check=True)

    def node_states(self) -> dict[str, str]:
        """Return sinfo's state of each node: idle, mixed, allocated, down, drained; with a * if it does not answer."""
        lines = self._client("sinfo", "--noheader", "--partition=low", "--Node", "--format=%N %T").stdout.splitlines()
        return dict(line.split() for line in lines)

    def _wait_for_nodes(self, nodes: tuple[str, ...] | list[str]) -> None:
        def answered() -> bool:
            states = self.node_states()
            return all(re.match(r"(idle|mixed|allocated|completing|drain\w+)$", states.get(node, "")) for node in nodes)

        for node in nodes:
            self._await(answered, node)

    # --- Clients ---

    @property
    def env(self) -> dict[str, str]:
        """Environment variables of a command that uses this cluster through the shims."""
        return {"SLURM_CONF": str(self.conf), "PATH": f"{self.shims}:{os.environ.get('PATH', os.defpath)}"}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on this cluster through the shims, and return its output."""
        return _run(command, self.env, check)

    def _client(self, name: str, *arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a client without the shims, so that the cluster's own calls are neither counted nor faulty."""
        return _run((_which(name) or name, *arguments), {"SLURM_CONF": str(self.conf)}, check)

    def submit(self, *options: str) -> str:
        """Submit a job with these options of sbatch and return its id."""
        return self.run("sbatch", "--parsable", *options).stdout.strip()

    def jobs(self) -> list[Job]:
        """Return all jobs that the controller remembers, array tasks one by one."""
        fields = ("JobArrayID", "State", "Reason", "NodeList", "RestartCnt", "Partition", "Name")
        layout = ",".join(f"{field}:|" for field in fields)
        run = self._client("squeue", "--noheader", "--all", "--array", "--states=all", f"--Format={layout}", check=True)
        rows = (line[:-1].split("|", len(fields) - 1) for line in run.stdout.splitlines())
        return [Job(*row[:4], int(row[4]), *row[5:]) for row in rows]

    def job(self, job: str) -> Job:
        """Return a job by its id."""
        return next(known for known in self.jobs() if known.id == job)

    def node_of(self, job: str) -> str:
        """Return the node of a job that runs or ran, empty while it waits."""
        return self.job(job).node

    def expire(self, job: str) -> None:
        """Set the end of a running job's time limit to now; the controller checks every 30 seconds."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 1))
        self._client("scontrol", "update", f"JobId={job}", f"EndTime={now}", check=True)

    def cancel_all(self) -> None:
        """Cancel every unfinished job."""
        if live := [job.id for job in self.jobs() if job.state in LIVE]:
            self._client("scancel", "--quiet", *live)

    def wait_idle(self, timeout: float = SECONDS) -> None:
        """Wait until no job waits or runs."""
        self.wait_for(lambda: not any(job.state in LIVE for job in self.jobs()), timeout, "all jobs to be over")

    def wait_for(self, predicate: Callable[[], object], timeout: float = SECONDS, what: str = "") -> None:
        """Wait until a predicate holds; on a timeout, fail with the state of the cluster."""
        deadline = time.monotonic() + timeout
        while not predicate():
            if time.monotonic() > deadline:
                queue = self._client("squeue", "--all", "--array", "--states=all")
                raise AssertionError(
                    f"waited {timeout} s in vain for {what or 'a condition'}\n{queue.stdout}{queue.stderr}"
                    f"nodes: {self.node_states()}\nslurmctld.log:\n{_tail(self.folder / 'log/slurmctld.log')}"
                )
            time.sleep(0.1)

    def reset(self) -> None:
        """Undo faults, cancel jobs, and wait until both nodes are idle."""
        for name in CLIENTS:
            self.heal(name)
        if not self.pid("slurmctld"):
            self.start_controller()
        self.cancel_all()
        for node in NODES:
            if not self.pid(node):
                self.start_node(node)
            if re.match("drain|down", self.node_states()[node]):
                self.set_node(node, "resume")
        self.wait_idle()
        self.wait_for(lambda: set(self.node_states().values()) == {"idle"}, SECONDS, "idle nodes")

    # --- Shims ---

    def calls(self, name: str) -> int:
        """Return the number of calls of a client with this cluster's environment, including those in jobs."""
        return len(re.findall(rf"^[\d.]+ {name} ", self.calls_log.read_text(), flags=re.MULTILINE))

    def fail(
        self, command: str, message: str, exit_code: int = 1, times: int | None = None, seconds: float | None = None
    ) -> None:
        """Make a client print a message and fail, for a number of calls or seconds, or until `heal`."""
        until = None if seconds is None else time.time() + seconds
        self._set_fault(command, message=message, exit_code=exit_code, times=times, until=until)

    def hang(self, command: str, seconds: float) -> None:
        """Make a client wait before each call, until `heal`."""
        self._set_fault(command, hang=seconds)

    def heal(self, command: str) -> None:
        """Undo the faults of a client."""
        self._fault_file(command).unlink(missing_ok=True)

    def _fault_file(self, command: str) -> Path:
        if command not in CLIENTS:
            raise ValueError(f"{command} is none of {', '.join(CLIENTS)}")
        return self.folder / "faults" / command

    def _set_fault(self, command: str, **settings: object) -> None:
        path = self._fault_file(command)
        with _locked(path):
            _write_fault(path, _read_fault(path) | settings)


# --- Faults of shims ---


def _read_fault(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}


def _write_fault(path: Path, fault: dict[str, Any]) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(json.dumps(fault))
    new.replace(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _meet_fault(path: Path, command: list[str]) -> None:
    """Hang or fail as the file specifies, or execute the command in the same process, so that a kill ends it."""
    time.sleep(_read_fault(path).get("hang", 0))
    with _locked(path):
        fault = _read_fault(path)
        times, until = fault.get("times"), fault.get("until")
        fails = "message" in fault and times != 0 and (until is None or time.time() < until)
        if fails and times is not None:
            _write_fault(path, fault | {"times": times - 1})
    if fails:
        print(fault["message"], file=sys.stderr)
        sys.exit(fault["exit_code"])
    os.execv(command[0], command)


# --- The machine ---


def _which(program: str) -> str | None:
    """Return the path of a program, also in sbin folders and without the shims of a cluster."""
    folders = [*os.environ.get("PATH", os.defpath).split(os.pathsep), "/usr/local/sbin", "/usr/sbin", "/sbin"]
    others = [folder for folder in folders if not os.path.exists(f"{folder}/../{CALLS_LOG}")]
    return shutil.which(program, path=os.pathsep.join(others))


def _run(command: tuple[str, ...], environment: dict[str, str], check: bool) -> subprocess.CompletedProcess[str]:
    """Run a command with these variables and without those of another cluster."""
    run = subprocess.run(command, env=_plain_environment() | environment, capture_output=True, text=True)
    if check and run.returncode:
        raise RuntimeError(f"{shlex.join(command)}: exit status {run.returncode}\n{run.stdout}{run.stderr}")
    return run


def _plain_environment() -> dict[str, str]:
    """Return the environment without SLURM's variables, in case the tests run in a job of another cluster."""
    return {key: value for key, value in os.environ.items() if not re.match("S(LURM|BATCH|QUEUE|INFO|RUN|CANCEL)", key)}


def _address() -> str:
    """Return the daemons' address: with NoInAddrAny, that of the host's own name."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError as error:
        raise RuntimeError(f"the name of this host, {socket.gethostname()}, has no address: {error}") from error


def _free_ports(count: int) -> list[int]:
    """Return free ports below those that the kernel assigns to clients."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(10_000, 32_000), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((_address(), port))
            ports.append(port)
        if len(ports) == count:
            break
    return ports


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _strings(path: str) -> list[str]:
    """Return the strings of a file of /proc, none if the process ended or belongs to another user."""
    try:
        return Path(path).read_bytes().rstrip(b"\0").decode(errors="replace").split("\0")
    except OSError:
        return []


def _arguments(pid: int) -> list[str]:
    """Return a process's command line, empty for a dead process."""
    return [word for word in _strings(f"/proc/{pid}/cmdline") if word]


def _environment(pid: int) -> dict[str, str]:
    """Return the environment at the start of a process."""
    return dict(item.split("=", 1) for item in _strings(f"/proc/{pid}/environ") if "=" in item)


def _parent(pid: int) -> int | None:
    """Return the parent of a process, None for a dead process."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(parent)


def open_files(pid: int) -> list[str]:
    """Return the open files of a process as `/proc` names them, without those that are closed meanwhile."""
    folder, found = f"/proc/{pid}/fd", []
    with contextlib.suppress(OSError):
        for number in os.listdir(folder):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"{folder}/{number}"))
    return found


def _tail(path: Path, lines: int = 20) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    return f"{path} cannot be read"


def require_slurm() -> None:
    """Install SLURM with apt-get if it is missing.

    Raises:
        SlurmMissing: SLURM cannot be installed.
    """
    packages = [package for program, package in PACKAGES.items() if not _which(program)]
    if not packages:
        return
    # Not above: the shims run this file without its package.
    from ..apt import NotInstalled, install

    policy = Path("/usr/sbin/policy-rc.d")
    makes_policy = os.geteuid() == 0 and not policy.exists()
    if makes_policy:
        # Prevents Debian's packages from starting their services; the tests start their own.
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        install(*packages)
    except NotInstalled as error:
        raise SlurmMissing(str(error)) from error
    finally:
        if makes_policy:
            policy.unlink()
    if shutil.which("systemctl"):
        # The services must not start with the host either.
        services = [package for package in packages if package != "slurm-client"]
        subprocess.run(["systemctl", "disable", *services], capture_output=True)


def main() -> int:
    """Run the command line: up, down, status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.slurm.cluster", description="A disposable SLURM cluster on this machine, for tests."
    )
    parser.add_argument(
        "action",
        choices=["up", "down", "status"],
        help="up prints shell commands to eval; down removes everything",
    )
    folder = Path(tempfile.gettempdir()) / f"patch-slurm-{os.geteuid()}"
    parser.add_argument("--folder", type=Path, default=folder, help="folder of the cluster (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.folder.exists() and arguments.folder.stat().st_uid != os.geteuid():
        parser.error(f"{arguments.folder} belongs to another user; give another --folder")
    cluster = Cluster(arguments.folder)
    daemons = {name: cluster.pid(name) for name in ("munged", "slurmctld", *NODES)}
    match arguments.action:
        case "up":
            if not all(daemons.values()):
                require_slurm()
                # Remnants of a reboot or a kill are useless.
                if cluster.conf.exists():
                    cluster.stop()
                cluster.start()
            print(f'export SLURM_CONF={cluster.conf}\nexport PATH={cluster.shims}:"$PATH"')
        case "down":
            if cluster.conf.exists():
                cluster.stop()
        case "status":
            for name, pid in daemons.items():
                print(f"{name:10} {f'runs as process {pid}' if pid else 'does not run'}")
            if daemons["slurmctld"]:
                for client in ("sinfo", "squeue"):
                    print(cluster._client(client).stdout, end="")
            return 0 if all(daemons.values()) else 1
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["fault"]:
        _meet_fault(Path(sys.argv[2]), sys.argv[3:])
    try:
        sys.exit(main())
    except (RuntimeError, OSError, ValueError) as problem:
        sys.exit(f"error: {problem}")
