"""Benchmark of job submission to SLURM: this project's executor against Snakemake's own SLURM plugin.

    python benchmarks/dispatch.py                # the same 200 jobs through both, minutes
    python benchmarks/dispatch.py --breakdown    # where the seconds of one job go
    python benchmarks/dispatch.py --grid 10000   # a grid against a made-up SLURM: dry run, submission, memory

The comparison runs on the tests' disposable cluster (two nodes, two processors each), so on one machine: while jobs
run, its processors are what both sides are short of, and other work on the machine falsifies every second.

What is alike: the cluster, Snakemake's version, the workflow, `--jobs`, `--latency-wait`, the greedy scheduler, and no
limit on jobs a second. Both submit with the options that they have by default; `--theirs-arrays` adds a third run, of
the official plugin with its job arrays. Each side runs four jobs that do not count before anybody is measured, so that
neither pays for a cold disk.

What is not alike, on purpose: how the end of a job is noticed, since that is a part of what is compared. Each side has
its own default (result files every 2 s and `squeue` every 20 s here; `squeue` after 40 s, then 10 s later each time
nothing has ended, there, whose Snakemake also sleeps one such pause before it exits). The seconds until the last
command ran are free of that: all jobs are in SLURM's queue by then.

What the official plugin needs on a cluster without accounting: `--slurm-status-command squeue` (its default is `sacct`
wherever there is such a program), and SLURM_CONF given back within jobs: its job step takes away all variables of SLURM
but a few, and this cluster's configuration lies in no place that `srun` would look in. The wrappers that count calls
do that. (`--slurm-no-account` changes nothing: the plugin has the option and never reads it.)

What is counted: calls of SLURM's commands, told apart by where they were made (on the login node or inside a job);
processor seconds of slurmctld, from /proc; what slurmctld was asked (RPCs), from `sdiag`. Every job writes when and in
which SLURM job it ran; a side whose files are not all there, each from a job of its own, has failed.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.dispatch_compare import compare  # noqa: E402
from benchmarks.dispatch_grid import grid  # noqa: E402
from benchmarks.dispatch_start import breakdown  # noqa: E402
from benchmarks.processes import RunFailed  # noqa: E402
from tests.slurm.cluster import Cluster, SlurmMissing, require_slurm  # noqa: E402


def main() -> int:
    """Run the command line and return the exit code, 1 if a side fails or a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=200, help="jobs of each side (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each side, of which the median counts")
    parser.add_argument("--only", choices=["ours", "theirs"], help="one side alone")
    parser.add_argument("--theirs-arrays", action="store_true", help="a third run: the official plugin's job arrays")
    parser.add_argument("--venv", type=Path, help="environment of the official plugin (default: in the user's cache)")
    parser.add_argument("--breakdown", action="store_true", help="instead: where the seconds of one job go, here")
    parser.add_argument(
        "--grid",
        type=int,
        nargs="?",
        const=10_000,
        metavar="JOBS",
        help="instead: a grid of so many jobs (%(const)s), without a cluster",
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder of the runs")
    arguments = parser.parse_args()

    # SIGTERM ends started processes, as an error does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="dispatch-"))
    folder.chmod(0o755)  # the user munge must reach the cluster's folder
    if arguments.keep:
        print(f"The runs stay in {folder}.")
    try:
        if arguments.grid:
            return grid(arguments.grid, folder)
        require_slurm()
        with Cluster(folder / "slurm") as cluster:
            if arguments.breakdown:
                return breakdown(cluster, folder)
            which = [name for name in ("ours", "theirs") if arguments.only in (None, name)]
            which += ["arrays"] if arguments.theirs_arrays else []
            return compare(which, arguments.jobs, arguments.rounds, arguments.venv, cluster, folder)
    except (SlurmMissing, RunFailed) as error:
        sys.exit(f"error: {error}")
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
