"""States of all jobs of an experiment."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from snakemake_executor_plugin_submitit.history import Entry

from patch.pipeline.monitor.here import file_time, printing_processes
from patch.pipeline.monitor.logs import ended_well, rule_log
from patch.pipeline.monitor.progress import Log, Progress, read_log, read_progress
from patch.pipeline.monitor.queue import Events, Queue, read_events
from patch.pipeline.reporting.units import duration
from patch.pipeline.resources.graph import JobGraph
from patch.pipeline.resources.jobs import Node

# Printed in this order. `started`: Snakemake runs and the job has a log, but no outputs and no process on this
# machine; it runs elsewhere or was killed. `ready`: the job can run but is not submitted to SLURM.
STATES = ("done", "running", "pending", "failed", "started", "ready", "waiting")
TAIL_LINES = 5
BLOCKED = "behind a failed job"


@dataclass(frozen=True)
class JobStatus:
    """Status of a job; the fields are the keys of `--json`.

    Attributes:
        stage: group of rules, see `patch.pipeline.resources.jobs.STAGES`.
        rule: rule of the workflow.
        model: model of the job, None if models share the job.
        run: name of the run, or of the job's product.
        state: one of ``STATES``.
        reason: explanation of the state; empty if there is none.
        job: SLURM's id of the job.
        node: name of the node that the job runs on.
        started: local start time, such as `2030-01-02T03:04:05`, by the clock of SLURM or of the node.
        expected: local start time that SLURM expects.
        step: completed steps, blocks or tasks according to the log.
        steps: total number of steps, blocks or tasks.
        eta_seconds: estimated seconds left for the remaining steps.
        restarts: number of returns to the queue, None if the job has no SLURM job.
        time_limits: number of time limits that the job reached, None if the job has no SLURM job.
        log: path of the rule's log, which may not exist.
        outputs: paths of the outputs.
        tail: last lines of the log of a failed job.
    """

    stage: str
    rule: str
    model: str | None
    run: str
    state: str
    reason: str = ""
    job: str | None = None
    node: str | None = None
    started: str | None = None
    expected: str | None = None
    step: int | None = None
    steps: int | None = None
    eta_seconds: int | None = None
    restarts: int | None = None
    time_limits: int | None = None
    log: str = ""
    outputs: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()


class Monitor:
    """Snapshot of the jobs of an experiment.

    Args:
        graph: the jobs. It must be built after ``queue``, so that jobs absent from the queue have their outputs.
        queue: SLURM submissions of the jobs.
    """

    def __init__(self, graph: JobGraph, queue: Queue) -> None:
        self.graph, self.queue = graph, queue
        self.root = graph.plan.layout.root
        self._remaining = set(graph.remaining)
        self._printing = printing_processes()
        # Snakemake's lock exists while Snakemake runs, and remains after a `kill -9`.
        self._locked = any(Path(".snakemake/locks").glob("*.lock"))
        self._now = file_time(self.root)

    def statuses(self) -> dict[Node, JobStatus]:
        """Return the status of every job in the order of the graph, each job after its dependencies."""
        statuses: dict[Node, JobStatus] = {}
        for node in self.graph.nodes:
            status = self._status(node)
            if status.state in ("waiting", "ready") and self._blocked(node, statuses):
                status = replace(status, state="waiting", reason=BLOCKED)
            statuses[node] = status
        return statuses

    def _blocked(self, node: Node, statuses: dict[Node, JobStatus]) -> bool:
        needs = (statuses[need] for need in self.graph.needs(node))
        return any(need.state == "failed" or need.reason == BLOCKED for need in needs)

    def _status(self, node: Node) -> JobStatus:
        status = JobStatus(
            node.stage, node.rule, node.model, node.name, "done", log=rule_log(node, self.root), outputs=node.outputs
        )
        entry = self.queue.newest(node.outputs)
        # An entry without an id is about to be submitted, or its Snakemake was killed before the submission.
        if entry is not None and entry.outcome is None and (entry.id or self._locked):
            return self._submitted(status, entry, self._made(node))
        if node not in self._remaining:
            return status
        age = self._printing.get(os.path.abspath(status.log))
        if age is not None:
            return self._local(status, age)
        if entry is not None and entry.outcome == "failed":
            return _failed(replace(status, reason=entry.reason), entry, read_events(entry))
        if self.graph.needs(node) & self._remaining:
            return replace(status, state="waiting")
        if entry is not None and entry.outcome == "cancelled":
            return replace(status, state="ready", reason="cancelled")
        return self._by_log(status)

    def _made(self, node: Node) -> bool:
        return node not in self._remaining or all(Path(path).exists() for path in node.outputs)

    def _submitted(self, status: JobStatus, entry: Entry, made: bool) -> JobStatus:
        """Return the status of a job that has no outcome in the ledger."""
        events = read_events(entry)
        verdict = self.queue.judge(entry, events, made)
        if verdict.state == "done":
            return status
        status = replace(status, **vars(verdict))
        if verdict.state == "failed":
            return _failed(status, entry, events)
        started = events.written if events.kind == "start" else None
        log = read_log(status.log) if events.starts else None
        if log and started and log.written < started:  # The log is from the previous start.
            log = None
        return _with_progress(_with_job(status, entry, events), log, self._now, started)

    def _local(self, status: JobStatus, age: float) -> JobStatus:
        """Return the status of a job that runs on this machine."""
        started = (datetime.now() - timedelta(seconds=age)).isoformat(timespec="seconds")
        status = replace(status, state="running", node=os.uname().nodename, started=started)
        return _with_progress(status, read_log(status.log), self._now, self._now - age)

    def _by_log(self, status: JobStatus) -> JobStatus:
        """Return the status of a job that can run but is known neither to SLURM nor to this machine."""
        log = read_log(status.log)
        if log is None or ended_well(status.log, log):
            return replace(status, state="ready")
        if log.stopped:
            return _with_progress(replace(status, state="ready", reason="stopped"), log, self._now)
        if log.error:
            return replace(status, state="failed", reason=log.error, tail=log.lines[-TAIL_LINES:])
        if not self._locked:
            return replace(status, state="ready", reason="interrupted")
        silence = duration(max(0.0, self._now - log.written) / 60)
        status = _with_progress(replace(status, state="started"), log, self._now)
        return replace(status, reason=f"its log was last written {silence} ago")


def _with_job(status: JobStatus, entry: Entry, events: Events) -> JobStatus:
    """Add SLURM's id and the number of restarts and reached time limits."""
    restarts = events.starts if status.state == "pending" else max(0, events.starts - 1)
    return replace(status, job=entry.id, restarts=restarts, time_limits=events.time_limits)


def _with_progress(status: JobStatus, log: Log | None, now: float, started: float | None = None) -> JobStatus:
    progress = read_progress(log, now, started) if log else Progress()
    left = progress.seconds_left if status.state == "running" else None
    if status.state == "running" and progress.silent:
        status = replace(status, reason=f"silent for {duration(progress.silent / 60)}")
    return replace(status, step=progress.step, steps=progress.steps, eta_seconds=None if left is None else round(left))


def _failed(status: JobStatus, entry: Entry, events: Events) -> JobStatus:
    """Mark a job as failed and add the end of the rule's log, or of the job's standard error or output."""
    status = replace(status, state="failed", node=status.node or events.last.get("node"))
    logs = [log for path in (status.log, entry.log("err"), entry.log("out")) if (log := read_log(path)) and log.lines]
    if logs:
        progress = read_progress(logs[0], logs[0].written)
        status = replace(status, tail=logs[0].lines[-TAIL_LINES:], step=progress.step, steps=progress.steps)
    return _with_job(status, entry, events)
