"""Comparison of the demo on a test cluster, with faults, and the local demo: `python -m tests.slurm.demo`.

It takes half an hour on two cores, so it is not part of the test suite. It runs `snakemake` in one copy of this tree
and `snakemake --profile slurm --configfile config/demo.yaml` in another, preempts a learning job and kills a node, and
compares the results of both: tables, results.csv, differences.csv and samples, without measured times and speeds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from .cluster import Cluster
from .comparison import COMPARED, MEASURED, different_results

ROOT = Path(__file__).parents[2]
LOCAL = ["snakemake", "--cores", "all"]
ON_CLUSTER = ["snakemake", "--profile", "slurm", "--configfile", "config/demo.yaml"]


class Faults(threading.Thread):
    """Thread that preempts the first learning job that runs, then kills the node of another."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self.cluster, self.messages, self.over = cluster, [], threading.Event()

    def run(self) -> None:
        """Preempt a job, then kill a node."""
        node = self._node_of_learning()
        if node is None:
            return
        self.cluster.submit(
            "--partition=high",
            "--exclusive",
            f"--nodelist={node}",
            "--time=1",
            "--output=/dev/null",
            "--wrap",
            "sleep 15",
        )
        self._report(f"preempted what ran on {node}")
        self.over.wait(60)
        node = self._node_of_learning()
        if node is None:
            return
        self.cluster.kill_node(node)
        self._report(f"killed node {node}")
        self.over.wait(60)
        self.cluster.start_node(node)
        self._report(f"started node {node}")

    def _node_of_learning(self) -> str | None:
        """Return the node of a learning job that has run for a while, None if the run ends before."""
        while not self.over.wait(5):
            running = [job for job in self.cluster.jobs() if job.name == "learn" and job.state == "RUNNING"]
            if running:
                self.over.wait(10)
                return running[0].node
        return None

    def _report(self, what: str) -> None:
        self.messages.append(what)
        print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


def copy_tree(target: Path) -> None:
    """Copy the files that git tracks to a folder."""
    target.mkdir(parents=True)
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    archive = subprocess.Popen(["tar", "--null", "-cT", "-"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    unpack = subprocess.Popen(["tar", "-x"], cwd=target, stdin=archive.stdout)
    archive.stdin.write(names)
    archive.stdin.close()
    if archive.wait() or unpack.wait():
        raise RuntimeError(f"{ROOT} could not be copied to {target}")


def run(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Run a command with its output in `run.log` and return its seconds.

    Raises:
        SystemExit: the command fails; the end of its output is printed.
    """
    started = time.monotonic()
    with (folder / "run.log").open("w") as log:
        done = subprocess.run(command, cwd=folder, env=os.environ | environment, stdout=log, stderr=log)
    if done.returncode:
        print("\n".join((folder / "run.log").read_text().splitlines()[-40:]))
        sys.exit(f"`{' '.join(command)}` failed; all of its output is in {folder / 'run.log'}")
    return time.monotonic() - started


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.demo", description=__doc__)
    parser.add_argument("--folder", type=Path, help="working folder; by default a new temporary folder, which is kept")
    parser.add_argument("--local", type=Path, help="folder of a finished local demo, instead of a new run")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="patch-demo-"))
    print(f"working in {folder}", flush=True)
    local = options.local or folder / "local"
    # Imports come from the copy, not from this tree.
    environment = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    if options.local is None:
        copy_tree(local)
        print(f"here: {run(LOCAL, local, environment | {'PYTHONPATH': str(local)}):.0f} s", flush=True)
    there = folder / "cluster"
    copy_tree(there)
    with Cluster() as cluster:
        faults = Faults(cluster)
        faults.start()
        environment |= cluster.env | {"PYTHONPATH": f"{there}:{there / 'workflow/executor'}"}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), cluster.env["PATH"]])
        seconds = run(ON_CLUSTER, there, environment)
        faults.over.set()
        faults.join()
        calls = cluster.calls("sbatch")
        print(f"on the cluster: {seconds:.0f} s, {calls} calls of sbatch; {'; '.join(faults.messages)}")
    different = different_results(local / "results/demo", there / "results/demo")
    measured = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in MEASURED.items())
    print("\n".join(["different:", *different] if different else [f"equal: {', '.join(COMPARED)}"]))
    print(f"not compared: {measured}")
    return 1 if different or len(faults.messages) < 3 else 0


if __name__ == "__main__":
    sys.exit(main())
