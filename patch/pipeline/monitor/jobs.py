"""States of all jobs of an experiment."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from snakemake_executor_plugin_submitit.ledger import Entry

from patch.evaluation.metric import HeldOutLoss
from patch.masks.header import read_header
from patch.pipeline.monitor.local_processes import file_time, printing_processes
from patch.pipeline.monitor.logs import last_lines
from patch.pipeline.monitor.queue import Events, Queue, read_events
from patch.pipeline.reporting.units import duration
from patch.pipeline.resources.jobs import Job, JobGraph
from patch.pipeline.runs.progress import Written, read_progress

# Printed in this order. `started`: Snakemake runs and the job has started, but it has no outputs and no process on
# this machine; it runs elsewhere or was killed. `ready`: the job can run but is not submitted to SLURM.
STATES = ("done", "running", "pending", "failed", "started", "ready", "waiting")
TAIL_LINES = 5
# Seconds without a report after which a job that estimates its remaining time counts as silent.
SILENCE = 900
BLOCKED = "behind a failed job"


@dataclass(frozen=True)
class JobStatus:
    """Status of a job; the fields are the keys of `--json`."""

    stage: str  # group of rules, see `patch.pipeline.resources.jobs.STAGES`
    rule: str
    model: str | None  # None if models share the job
    run: str  # name of the run, or of the job's product
    state: str  # one of `STATES`
    reason: str = ""  # explanation of the state
    job: str | None = None  # SLURM's id of the job
    node: str | None = None
    started: str | None = None  # local time such as `2030-01-02T03:04:05`, by the clock of SLURM or of the node
    expected: str | None = None  # local start time that SLURM expects
    step: int | None = None  # completed steps, blocks or tasks
    steps: int | None = None  # total number of steps, blocks or tasks
    eta_seconds: int | None = None  # estimated seconds left for the remaining steps
    restarts: int | None = None  # number of returns to the queue, None if the job has no SLURM job
    time_limits: int | None = None  # number of time limits that the job reached, None if the job has no SLURM job
    log: str = ""  # path of the rule's log, which may not exist
    outputs: tuple[str, ...] = ()
    warning: str = ""  # a result to look at, such as a learned mask that is worse than its initial mask
    tail: tuple[str, ...] = ()  # last lines of the log of a failed job


class Monitor:
    """Snapshot of the jobs of an experiment.

    Args:
        graph: the jobs. It must be read after ``queue``, so that jobs absent from the queue have their outputs.
        queue: SLURM submissions of the jobs.
    """

    def __init__(self, graph: JobGraph, queue: Queue) -> None:
        self.graph, self.queue = graph, queue
        self._printing = printing_processes()
        # Snakemake's lock exists while Snakemake runs, and remains after a `kill -9`.
        self._locked = any(Path(".snakemake/locks").glob("*.lock"))
        self._now = file_time(graph.plan.layout.root)

    def statuses(self) -> dict[Job, JobStatus]:
        """Return the status of every job in the order of the graph, each job after its dependencies."""
        statuses: dict[Job, JobStatus] = {}
        for job in self.graph.jobs:
            status, needs = self._status(job), [statuses[need] for need in job.needs]
            blocked = any(need.state == "failed" or need.reason == BLOCKED for need in needs)
            if blocked and status.state in ("waiting", "ready"):
                status = replace(status, state="waiting", reason=BLOCKED)
            if status.state == "done":
                status = replace(status, warning=_warning(job))
            statuses[job] = status
        return statuses

    def _status(self, job: Job) -> JobStatus:
        status = JobStatus(job.stage, job.rule, job.model, job.name, "done", log=job.log, outputs=job.outputs)
        entry = self.queue.newest(job.outputs)
        # An entry without an id is about to be submitted, or its Snakemake was killed before the submission.
        if entry is not None and entry.outcome is None and (entry.id or self._locked):
            made = not job.to_run or all(Path(path).exists() for path in job.outputs)
            return self._submitted(status, entry, made)
        if not job.to_run:
            return status
        age = self._printing.get(os.path.abspath(job.log))
        if age is not None:
            started = (datetime.now() - timedelta(seconds=age)).isoformat(timespec="seconds")
            status = replace(status, state="running", node=os.uname().nodename, started=started)
            return self._with_progress(status, read_progress(status.log))
        if entry is not None and entry.outcome == "failed":
            return self._failed(replace(status, reason=entry.reason), entry, read_events(entry))
        if any(need.to_run for need in job.needs):
            return replace(status, state="waiting")
        if entry is not None and entry.outcome == "cancelled":
            return replace(status, state="ready", reason="cancelled")
        return self._by_progress(status)

    def _submitted(self, status: JobStatus, entry: Entry, made: bool) -> JobStatus:
        """Return the status of a job that has no outcome in the ledger."""
        events = read_events(entry)
        status = replace(status, **self.queue.state(entry, events, made))
        if status.state == "done":
            return status
        if status.state == "failed":
            return self._failed(status, entry, events)
        started = events.written if events.kind == "start" else None
        written = read_progress(status.log) if events.starts else None
        if written and started and written.time < started:  # by the previous start
            written = None
        return self._with_progress(_with_job(status, entry, events), written)

    def _by_progress(self, status: JobStatus) -> JobStatus:
        """Return the status of a job that can run but is known neither to SLURM nor to this machine."""
        written = read_progress(status.log)
        if written is None or written.progress.state == "done":  # the outputs of a job that is done were removed
            return replace(status, state="ready")
        progress = written.progress
        if progress.state == "failed":
            tail = last_lines(status.log, TAIL_LINES)
            status = replace(status, state="failed", reason=progress.error, tail=tail)
        elif progress.state == "running" and self._locked:
            reason = f"its last report was {duration(max(0.0, self._now - written.time) / 60)} ago"
            status = replace(status, state="started", reason=reason)
        else:
            reason = "interrupted" if progress.state == "running" else progress.state
            status = replace(status, state="ready", reason=reason)
        return self._with_progress(status, written)

    def _failed(self, status: JobStatus, entry: Entry, events: Events) -> JobStatus:
        """Mark a job as failed and add the end of the rule's log, or of the job's standard error or output."""
        tails = (last_lines(path, TAIL_LINES) for path in (status.log, entry.log("err"), entry.log("out")))
        node, tail = status.node or events.last.get("node"), next(filter(None, tails), ())
        status = _with_job(replace(status, state="failed", node=node, tail=tail), entry, events)
        return self._with_progress(status, read_progress(status.log))

    def _with_progress(self, status: JobStatus, written: Written | None) -> JobStatus:
        if written is None:
            return status
        progress, age = written.progress, max(0.0, self._now - written.time)
        status = replace(status, step=progress.done, steps=progress.total)
        if status.state != "running" or progress.seconds_left is None:
            return status
        if age > SILENCE:
            return replace(status, reason=f"silent for {duration(age / 60)}")
        return replace(status, eta_seconds=round(max(0.0, progress.seconds_left - age)))


def _warning(job: Job) -> str:
    """Return the warning of a learning job that is done, from the header of its mask; empty if there is none."""
    header = read_header(job.outputs[0]) if job.rule == "learn" else None
    return HeldOutLoss(**header["held_out"]).warning if header and "held_out" in header else ""


def _with_job(status: JobStatus, entry: Entry, events: Events) -> JobStatus:
    """Add SLURM's id and the number of restarts and reached time limits."""
    restarts = events.starts if status.state == "pending" else max(0, events.starts - 1)
    return replace(status, job=entry.id, restarts=restarts, time_limits=events.time_limits)
