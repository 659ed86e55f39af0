"""State and progress of an experiment's jobs, from its files and one query of SLURM's queue; nothing is changed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from patch.errors import InputError, print_result, suggest
from patch.pipeline.cli.workflow import command_parser, read_graph
from patch.pipeline.monitor.jobs import Monitor
from patch.pipeline.monitor.logs import logs_of
from patch.pipeline.monitor.queue import Queue
from patch.pipeline.monitor.text import to_text
from patch.pipeline.resources.jobs import Job

SUBMIT_FOLDER = "work/submit"
# Maximum number of run names in a message.
NAMED = 20


def find(jobs: Sequence[Job], name: str) -> list[Job]:
    """Return the jobs that match a name.

    The name is compared with `<run>` and `<model>/<run>` exactly. If no run matches, a part of `<model>/<run>` is
    enough. If still no run matches, a part of `<rule>/<model>/<name>` of any job is enough.

    Raises:
        InputError: No job matches.
    """
    of_runs = [job for job in jobs if job.of_run]
    found = [job for job in of_runs if name in (job.name, f"{job.model}/{job.name}")]
    found = found or [job for job in of_runs if name in f"{job.model}/{job.name}"]
    found = found or [job for job in jobs if name in f"{job.rule}/{job.model}/{job.name}"]
    if not found:
        names = list(dict.fromkeys(job.name for job in of_runs))
        near = names if len(names) <= NAMED else get_close_matches(name, names, NAMED, cutoff=0)
        raise InputError(f"no run `{name}`; {suggest(name, near)}")
    return found


def _report(options: argparse.Namespace) -> str:
    # Before the graph is read, so that jobs absent from the queue have their outputs.
    queue = Queue(Path(options.folder))
    graph = read_graph(options)
    if options.logs is not None:
        jobs = find(graph.jobs, options.logs)
        paths = logs_of(queue, jobs)
        if not paths:
            raise InputError(f"`{options.logs}` has no log: none of its {len(jobs)} jobs has started")
        return "\n".join(paths)
    statuses = Monitor(graph, queue).statuses()
    if options.json:
        if queue.note:
            print(queue.note, file=sys.stderr)
        return json.dumps([vars(status) for status in statuses.values()], indent=1)
    return to_text(graph, statuses, queue.note, options.all)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m patch status` and return the exit code."""
    parser = command_parser("status", __doc__)
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print a JSON list of all jobs")
    output.add_argument("--all", action="store_true", help="list all jobs, not only active and failed ones")
    output.add_argument("--logs", metavar="RUN", help="print the paths of a run's logs; a part of its name is enough")
    about = f"submit folder, the executor's --submitit-folder (default: {SUBMIT_FOLDER})"
    parser.add_argument("--folder", default=SUBMIT_FOLDER, help=about)
    options = parser.parse_args(arguments)
    return print_result(lambda: _report(options))
