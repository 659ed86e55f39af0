"""Snakemake with `--executor submitit` on the test cluster, and a payload that logs its progress.

    project = Project(cluster, tmp_path, '''
    rule a:
        output: "a.txt"
        resources: resumable=1
        shell: "{PAYLOAD} {output} --steps 20 --pause 0.2"
    ''')
    run = project.run()                       # waits; project.start() does not
    assert run.code == 0 and "Submitted a" in run.output
    assert [begin.step for begin in project.lines("a", "begin")] == [0]

The payload counts steps in a file that Snakemake does not know, and resumes from it after a restart. On SIGUSR2 or
SIGTERM it saves and exits with code 75. It logs each start and end, and overlaps of two payloads of the same output.
`PAYLOAD_SCRIPT` has its options.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .cluster import LIVE, Cluster

SECONDS = 240  # for a whole run, which takes 10 s on an idle machine
# Later options override these.
OPTIONS = """
    --executor=submitit --jobs=40 --scheduler=greedy --latency-wait=20 --default-resources mem_mb=500 runtime=10
    --submitit-squeue-seconds=3 --submitit-poll-seconds=1 --submitit-lost-seconds=10 --submitit-signal-delay=20
    --keep-going --nocolor
"""

PAYLOAD_SCRIPT = """\
import argparse, fcntl, os, signal, sys, time

parser = argparse.ArgumentParser()
parser.add_argument("output")
parser.add_argument("--steps", type=int, default=1)
parser.add_argument("--pause", type=float, default=0.1, help="seconds that a step takes")
parser.add_argument("--until", help="count until this file is there, instead of to --steps")
parser.add_argument("--every", type=int, default=1, help="steps between saves; a signal saves too")
parser.add_argument("--hoard", type=int, default=0, help="MB of memory to take")
parser.add_argument("--exit", type=int, default=0, help="code to end with after the last step, without the output")
parser.add_argument("--deaf", action="store_true", help="ignore SIGUSR2 and SIGTERM")
parser.add_argument("--linger", type=float, default=0, help="seconds between the save after a signal and the end")
options = parser.parse_args()
name = os.path.basename(options.output).partition(".")[0]
os.makedirs("payload", exist_ok=True)
step = 0
leaving = False


def note(kind):
    with open(f"payload/{name}.log", "a") as file:
        file.write(f"{kind} {step} {os.getpid()} {os.environ.get('SLURMD_NODENAME', '-')} {time.time():.3f}\\n")


def save():
    with open(f"payload/{name}.new", "w") as file:
        file.write(str(step))
    os.replace(f"payload/{name}.new", f"payload/{name}.step")


class Signalled(Exception):
    pass


def on_signal(signum, frame):
    global leaving
    if not leaving:
        leaving = True
        raise Signalled(signal.Signals(signum).name)


for signum in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(signum, signal.SIG_IGN if options.deaf else on_signal)
# Held until this process ends.
lock = open(f"payload/{name}.lock", "w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    note("overlap")
    sys.exit("another payload works on this output")
if os.path.exists(f"payload/{name}.step"):
    step = int(open(f"payload/{name}.step").read())
note("begin")
try:
    hoard = b"x" * (options.hoard << 20)
    while not os.path.exists(options.until) if options.until else step < options.steps:
        time.sleep(options.pause)
        step += 1
        if step % options.every == 0:
            save()
except Signalled as signalled:
    save()
    note(signalled)
    time.sleep(options.linger)
    sys.exit(75)
note("end")
if options.exit:
    print(f"the payload fails with {options.exit}", file=sys.stderr)
    sys.exit(options.exit)
with open(options.output, "w") as file:
    file.write(f"{step} steps\\n")
"""
# With -S and -I it starts in 20 ms. The Snakefile of a project defines PAYLOAD as this command.
PAYLOAD = f"{sys.executable} -IS payload.py"


class Line(NamedTuple):
    """A line of a payload's log: begin, end, the name of a signal, or overlap."""

    kind: str
    step: int
    pid: int
    node: str
    time: float


class Run:
    """A Snakemake process in its own process group."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str], log: Path) -> None:
        self.log = log
        self.started = time.monotonic()
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """Output of both streams so far."""
        return self.log.read_text(errors="replace")

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self.process.poll()

    def wait(self, seconds: float = SECONDS) -> Run:
        """Wait for the end of the process."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"Snakemake did not end within {seconds} s:\n{self.output}") from None
        return self

    def wait_for(self, pattern: str, seconds: float = SECONDS) -> re.Match[str]:
        """Wait until the output matches a pattern."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.output, re.MULTILINE)):
            assert self.code is None, f"it ended with {self.code} without {pattern!r}:\n{self.output}"
            assert time.monotonic() < deadline, f"waited {seconds} s in vain for {pattern!r}:\n{self.output}"
            time.sleep(0.1)
        return match

    def interrupt(self) -> None:
        """Send SIGINT to the whole process group, as a terminal does on Ctrl-C."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """Send SIGKILL to the whole process group; SLURM's jobs survive."""
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, signum: int) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signum)


class Project:
    """A folder with a Snakefile and the payload, run on the cluster. As a context, it kills its Snakemakes on exit."""

    def __init__(self, cluster: Cluster, folder: Path, snakefile: str = "") -> None:
        self.cluster, self.folder = cluster, folder
        self.runs: list[Run] = []
        self.seen: dict[str, Any] = {}  # observations of a scene for its tests
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        (folder / "payload.py").write_text(PAYLOAD_SCRIPT)
        self.write(snakefile)

    def __enter__(self) -> Project:
        return self

    def __exit__(self, *error: object) -> None:
        for run in self.runs:
            run.kill()

    def write(self, snakefile: str) -> None:
        """Write the Snakefile, in which PAYLOAD is the payload's command."""
        (self.folder / "Snakefile").write_text(f"PAYLOAD = {PAYLOAD!r}\n{textwrap.dedent(snakefile)}")

    def shim(self, command: str, script: str) -> None:
        """Replace a command by a shell script for this project's Snakemake; `$REAL` is the command."""
        real = self.cluster.shims / command
        path = self.bin / command
        path.write_text(f"#!/bin/bash\nREAL={real if real.exists() else command}\n{script}\n")
        path.chmod(0o755)

    def start(self, *options: str, wrapper: Path | None = None, env: dict[str, str] | None = None) -> Run:
        """Start Snakemake; `wrapper` is a Python script that replaces `-m snakemake`."""
        environment = {key: value for key, value in os.environ.items() if not re.match("S(LURM|BATCH|NAKEMAKE)", key)}
        environment |= self.cluster.env
        environment["PATH"] = f"{self.bin}:{self.cluster.env['PATH']}"
        environment["XDG_CACHE_HOME"] = str(self.folder / "cache")
        start = [str(wrapper)] if wrapper else ["-m", "snakemake"]
        log = self.folder / f"run{len(self.runs)}.txt"
        run = Run([sys.executable, *start, *OPTIONS.split(), *options], self.folder, environment | (env or {}), log)
        self.runs.append(run)
        return run

    def run(self, *options: str, seconds: float = SECONDS, **settings: Any) -> Run:
        """Start Snakemake and wait for its end."""
        return self.start(*options, **settings).wait(seconds)

    def touch(self, name: str) -> None:
        """Create a file that a payload or a rule waits for."""
        (self.folder / name).touch()

    # --- What happened ---

    def wait_for_lines(self, name: str, kind: str, count: int = 1, seconds: float = SECONDS) -> list[Line]:
        """Wait until the log of an output has a number of lines of a kind."""

        def enough_lines() -> bool:
            enough, run = len(self.lines(name, kind)) >= count, self.runs[-1]
            assert enough or run.code is None, f"it ended with {run.code} without a {kind} of {name}:\n{run.output}"
            return enough

        self.cluster.wait_for(enough_lines, seconds, f"{count} times {kind} of {name}")
        return self.lines(name, kind)

    def lines(self, name: str, kind: str | None = None) -> list[Line]:
        """Return the log lines of an output, by its name without suffixes."""
        path = self.folder / f"payload/{name}.log"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        made = [Line(what, int(step), int(pid), node, float(when)) for what, step, pid, node, when in lines]
        return [line for line in made if kind in (None, line.kind)]

    def saved(self, name: str) -> int:
        """Return the step from which the payload of an output would resume."""
        path = self.folder / f"payload/{name}.step"
        return int(path.read_text()) if path.exists() else 0

    def overlaps(self) -> list[str]:
        """Return the outputs that two payloads worked on at once."""
        return [log.stem for log in self.folder.glob("payload/*.log") if self.lines(log.stem, "overlap")]

    def submissions(self) -> list[str]:
        """Return the arguments of every sbatch call for this project."""
        call = rf"^[\d.]+ sbatch (.*{re.escape(str(self.folder))}/.*)$"
        return re.findall(call, self.cluster.calls_log.read_text(), re.MULTILINE)

    def ledger(self) -> Iterator[dict[str, Any]]:
        """Yield all lines of the plugin's ledgers, oldest first."""
        for path in sorted(self.folder.glob(".snakemake/submitit/*/ledger.jsonl")):
            yield from map(json.loads, path.read_text().splitlines())

    def ids(self, rule: str | None = None) -> list[str]:
        """Return SLURM's ids of this project's jobs, or of a rule's jobs, in the order of submission."""
        rules: dict[str, list[str]] = {}
        found = []
        for line in self.ledger():
            if line["event"] == "submit":
                rules[line["batch"]] = [job["rule"] for job in line["jobs"]]
            elif line["event"] == "accept":
                found += zip(rules[line["batch"]], line["ids"], strict=True)
        return [job for name, job in found if rule in (None, name)]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events of the job that makes an output, by its path in `output:`."""
        tags = {
            job["tag"]
            for line in self.ledger()
            if line["event"] == "submit"
            for job in line["jobs"]
            if name in job["outputs"]
        }
        logs = sorted(log for tag in tags for log in self.folder.glob(f".snakemake/submitit/*/{tag}_events.jsonl"))
        return [json.loads(line) for log in logs for line in log.read_text().splitlines()]

    def living(self) -> list[str]:
        """Return the ids of this project's jobs that wait or run."""
        ids = set(self.ids())
        return [job.id for job in self.cluster.jobs() if job.state in LIVE and job.id in ids]
