"""The demo on a test cluster, with faults on the way, against the demo run here: `python -m tests.slurm.demo`.

Half an hour on two cores, so not part of the test suite. It runs `snakemake` in one copy of this tree and
`snakemake --profile slurm --configfile config/demo.yaml` in another, preempts a learning job and takes the power from a
node, and compares the tables of both, byte by byte.
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

ROOT = Path(__file__).parents[2]
LOCAL = ["snakemake", "--cores", "all"]
ON_CLUSTER = ["snakemake", "--profile", "slurm", "--configfile", "config/demo.yaml"]


class Faults(threading.Thread):
    """Preempts the first learning job that runs, then takes the power from the node of another."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self.cluster, self.told, self.over = cluster, [], threading.Event()

    def run(self) -> None:
        """Wait for a job, hurt it, wait for the next."""
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
        self._tell(f"preempted what ran on {node}")
        self.over.wait(60)
        node = self._node_of_learning()
        if node is None:
            return
        self.cluster.kill_node(node)
        self._tell(f"killed node {node}")
        self.over.wait(60)
        self.cluster.start_node(node)
        self._tell(f"started node {node}")

    def _node_of_learning(self) -> str | None:
        """Where a learning job has run for a while; None when the run is over before."""
        while not self.over.wait(5):
            running = [job for job in self.cluster.jobs() if job.name == "learn" and job.state == "RUNNING"]
            if running:
                self.over.wait(10)
                return running[0].node
        return None

    def _tell(self, what: str) -> None:
        self.told.append(what)
        print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


def copy_tree(target: Path) -> None:
    """What git knows of this tree, as a clone would have it."""
    target.mkdir(parents=True)
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    archive = subprocess.Popen(["tar", "--null", "-cT", "-"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    unpack = subprocess.Popen(["tar", "-x"], cwd=target, stdin=archive.stdout)
    archive.stdin.write(names)
    archive.stdin.close()
    if archive.wait() or unpack.wait():
        raise RuntimeError(f"{ROOT} could not be copied to {target}")


def run(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Run a command with its output in `run.log`; returns its seconds.

    Raises:
        SystemExit: it fails; the end of its output is printed.
    """
    started = time.monotonic()
    with (folder / "run.log").open("w") as log:
        done = subprocess.run(command, cwd=folder, env=os.environ | environment, stdout=log, stderr=log)
    if done.returncode:
        print("\n".join((folder / "run.log").read_text().splitlines()[-40:]))
        sys.exit(f"`{' '.join(command)}` failed; all of its output is in {folder / 'run.log'}")
    return time.monotonic() - started


def compare(first: Path, second: Path) -> list[str]:
    """Tables that differ or are only in one of two folders."""
    tables = {path.relative_to(folder) for folder in (first, second) for path in folder.glob("*.csv")}
    if not tables:
        return ["there is no table"]

    def text(path: Path) -> bytes | None:
        return path.read_bytes() if path.exists() else None

    return [str(name) for name in sorted(tables) if text(first / name) != text(second / name)]


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.demo", description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to work; a new temporary folder, which stays")
    parser.add_argument("--local", type=Path, help="a folder where the demo has run, to compare with instead")
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
        print(f"on the cluster: {seconds:.0f} s, {cluster.calls('sbatch')} calls of sbatch; {'; '.join(faults.told)}")
    different = compare(local / "results/demo/tables", there / "results/demo/tables")
    print("different tables: " + ", ".join(different) if different else "all tables are the same, byte by byte")
    return 1 if different or len(faults.told) < 3 else 0


if __name__ == "__main__":
    sys.exit(main())
