"""Benchmark of job submission to SLURM: this project's executor against Snakemake's own SLURM plugin.

    python benchmarks/dispatch.py                # the same 200 jobs through both, minutes
    python benchmarks/dispatch.py --breakdown    # time breakdown of one job
    python benchmarks/dispatch.py --grid 10000   # a grid on a simulated SLURM: dry run, submission, memory

The comparison runs on the tests' disposable cluster of two nodes with two processors each, all on one machine. Its
processors are the bottleneck of both sides while jobs run, so other work on the machine distorts all times.

Both sides have the same cluster, version of Snakemake, workflow, `--jobs`, `--latency-wait`, greedy scheduler, and no
limit on jobs per second, and submit with their default options; `--theirs-arrays` adds a third run, of the official
plugin with its job arrays. Each side first runs four jobs that do not count, so that neither pays for a cold disk.

Each side detects the end of a job with its own defaults, since that is a part of the comparison. This executor reads
result files every 2 s and calls `squeue` every 20 s; the plugin calls `squeue` after 40 s, then 10 s later each time
that no job has ended, and its Snakemake sleeps for one such interval before it exits. The seconds until the last
command ran do not depend on that, since all jobs are in SLURM's queue by then.

On a cluster without accounting, the official plugin needs `--slurm-status-command squeue` (its default is `sacct` if
that program exists) and SLURM_CONF within jobs: its job step removes most of SLURM's variables, and `srun` would not
find this cluster's configuration. The wrappers that count calls set it. (`--slurm-no-account` has no effect: the plugin
never reads the option.)

The measurements are calls of SLURM's commands, on the login node and inside jobs; processor seconds of slurmctld, from
/proc; and messages to slurmctld (RPCs), from `sdiag`. Every job writes the time and its SLURM job. A side fails unless
every file exists and comes from a separate SLURM job.
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
    parser.add_argument("--rounds", type=int, default=1, help="runs of each side; results are those of the median run")
    parser.add_argument("--only", choices=["ours", "theirs"], help="run only one side")
    parser.add_argument("--theirs-arrays", action="store_true", help="add a run of the official plugin with job arrays")
    parser.add_argument("--venv", type=Path, help="environment of the official plugin (default: in the user's cache)")
    parser.add_argument("--breakdown", action="store_true", help="only the time breakdown of one job of this executor")
    parser.add_argument(
        "--grid",
        type=int,
        nargs="?",
        const=10_000,
        metavar="JOBS",
        help="only a grid of JOBS jobs (%(const)s) on a simulated SLURM",
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
