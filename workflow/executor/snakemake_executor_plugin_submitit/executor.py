"""Snakemake executor that submits ready jobs to SLURM and reports their outcomes."""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

from snakemake_executor_plugin_submitit import slurm
from snakemake_executor_plugin_submitit.adoption import EarlierJobs
from snakemake_executor_plugin_submitit.checks import (
    check_cluster,
    check_environment,
    leave_allocation,
    partition_minutes,
)
from snakemake_executor_plugin_submitit.job import ClusterJob
from snakemake_executor_plugin_submitit.ledger import Ledger, make_entry
from snakemake_executor_plugin_submitit.resources import Request, ResourceError, make_request, requests_by_rule
from snakemake_executor_plugin_submitit.status import Decision, TrackedJob, has_content, log_tail
from snakemake_executor_plugin_submitit.submission import Batch, SubmissionQueue
from snakemake_executor_plugin_submitit.submit_folder import check_folder

# Resubmissions of a job that SLURM did not requeue after its node failed.
NODE_RETRIES = 3


class Executor(RemoteExecutor):
    """Executor that runs jobs on SLURM through submitit."""

    # Set after the setup: the thread that polls job states starts before `__post_init__`.
    _ready = False

    def __post_init__(self) -> None:
        self.settings = self.workflow.executor_settings
        self.next_seconds_between_status_checks = self.settings.poll_seconds
        self._limits: dict[str, int] = {}
        self._submitting = threading.Lock()
        self._tracked: dict[str, TrackedJob] = {}  # by tag
        self._squeue_error = ""
        if any(not job.is_local and not job.is_norun for job in self.dag.needrun_jobs()):
            self._start()

    def _start(self) -> None:
        """Check the cluster and the submit folder, and prepare the first submission.

        Raises:
            WorkflowError: the cluster cannot run the jobs or does not answer, the submit folder cannot be used, or
                another Snakemake has submitted jobs for the same files.
        """
        leave_allocation(os.environ)
        settings, folder, warn = self.settings, Path(self.settings.folder).absolute(), self.logger.warning
        for warning in [*check_folder(folder), *check_environment(os.environ)]:
            warn(warning)
        try:
            self._limits = partition_minutes()
            self._array_size = slurm.max_array_size()
            if problems := check_cluster(requests_by_rule(self.dag.needrun_jobs(), settings, self._limits)):
                raise WorkflowError("The cluster cannot run this workflow:\n" + "\n".join(f"- {p}" for p in problems))
            self._ledger = Ledger(folder, warn)
            # After a failure, this Snakemake would delete the outputs of the other one.
            wanted = {str(path) for job in self.dag.needrun_jobs() for path in job.output}
            foreign = [entry.id or entry.rule for entry in self._ledger.foreign if wanted & set(entry.outputs)]
            if foreign:
                raise WorkflowError(
                    f"Another Snakemake that still runs has SLURM jobs for the same files: {', '.join(foreign)}. "
                    "Wait for it, or stop it."
                )
            self._earlier = EarlierJobs(self._ledger, warn)
        except slurm.SlurmError as error:
            raise WorkflowError(f"SLURM does not answer: {error}") from None
        except OSError as error:
            raise WorkflowError(f"The submit folder {folder} cannot be used: {error}") from None
        self._watch = slurm.QueueWatch(settings.squeue_seconds)
        self._queue = SubmissionQueue(self._ledger, settings.submit_minutes, self._accepted, self._refused, warn)
        self._ready = True

    # -- submission -----------------------------------------------------------------------------

    @property
    def cores(self) -> str:
        """The `--cores` value of a job: all cores of its allocation."""
        return "all"

    def additional_general_args(self) -> str:
        # The job runs locally, without a profile and without the pause of the rate limit.
        return "--executor local --workflow-profile none --max-jobs-per-timespan 1000/0s"

    def run_job(self, job: JobExecutorInterface) -> None:
        """Submit one job."""
        self.run_jobs([job])

    def run_jobs(self, jobs: list[JobExecutorInterface]) -> None:
        """Submit jobs, with equal ones as job arrays, and adopt jobs that an earlier run left in the queue."""
        if not self._ready:  # jobs that a checkpoint added to the plan
            self._start()
        groups: dict[tuple[str, str], list[tuple[TrackedJob, Request]]] = defaultdict(list)
        with self._submitting:
            for job in jobs:
                self.run_job_pre(job)
                tracked = TrackedJob(job, make_entry(job, self._ledger.run))
                try:
                    adopted = self._earlier.claim(tracked.entry)
                    request = None if adopted else self._request(tracked)
                except (ResourceError, slurm.SlurmError) as error:
                    self._fail_unsubmitted(job, str(error))
                    continue
                self._tracked[tracked.entry.tag] = tracked
                if adopted:
                    self._ledger.adopt(adopted)
                    tracked.entry = adopted
                    self._report_submitted(tracked)
                    self.logger.info(f"Adopted SLURM job {adopted.id} of an earlier run; not submitted again.")
                else:
                    groups[job.name, request.key].append((tracked, request))
            for members in groups.values():
                least = self.settings.array_from
                size = min(len(members), self._array_size) if 0 < least <= len(members) else 1
                for first in range(0, len(members), size):
                    self._send([tracked for tracked, _ in members[first : first + size]], members[first][1])

    def _send(self, members: list[TrackedJob], request: Request) -> None:
        commands = []
        for tracked in members:
            command = self.format_job_exec(tracked.job)
            command = command.replace(" -m snakemake ", " -m snakemake_executor_plugin_submitit ", 1)
            if self.settings.container:
                command = f"{self.settings.container} bash -c {shlex.quote(command)}"
            tag, events = tracked.entry.tag, str(tracked.entry.events)
            commands.append(ClusterJob(command, tag, events, request.time_limits, request.signal_delay))
        entries, prologue = [tracked.entry for tracked in members], self.settings.prologue.splitlines()
        self._queue.send(Batch(commands, entries, request, members[0].job.name, prologue))

    def _accepted(self, batch: Batch) -> None:
        for entry in batch.entries:
            tracked = self._tracked[entry.tag]
            tracked.restart()
            self._report_submitted(tracked)
        what = f"array of {len(batch.jobs)}" if len(batch.jobs) > 1 else "job"
        self.logger.info(f"Submitted {batch.name} as SLURM {what} {batch.entries[0].id.partition('_')[0]}.")

    def _report_submitted(self, tracked: TrackedJob) -> None:
        if tracked.info is None:
            tracked.info = SubmittedJobInfo(tracked.job, tracked.entry.id, aux={"tracked": tracked})
            self.report_job_submission(tracked.info)
        tracked.info.external_jobid = tracked.entry.id

    def _refused(self, batch: Batch, message: str) -> None:
        for entry in batch.entries:
            self._ledger.end(entry, "failed", message)
            tracked = self._tracked.pop(entry.tag)
            tracked.refusal = message
            if tracked.info is None:  # otherwise the next status check reports it
                self._fail_unsubmitted(tracked.job, message)

    def _fail_unsubmitted(self, job: JobExecutorInterface, message: str) -> None:
        self.report_job_error(SubmittedJobInfo(job), msg=f"SLURM refused the job: {message}")

    # -- status ---------------------------------------------------------------------------------

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        """Check results and SLURM states, and yield the unfinished jobs."""
        if not self._ready:
            return
        with self._submitting:
            self._queue.retry()
        started = time.monotonic()
        if active_jobs:
            self._watch.poll()
            self._report_squeue_error()
        for info in active_jobs:
            try:
                unfinished = self._check(info.aux["tracked"])
            except OSError as error:  # a temporary filesystem failure must not end the run
                self.logger.warning(f"SLURM job {info.external_jobid}: {error}; checking again")
                unfinished = True
            if unfinished:
                yield info
        # A slow filesystem is polled less often.
        pause = max(self.settings.poll_seconds, 4 * (time.monotonic() - started))
        self.next_seconds_between_status_checks = pause

    def _check(self, tracked: TrackedJob) -> bool:
        """Check one job and return whether it is unfinished."""
        if tracked.refusal:
            self.report_job_error(tracked.info, msg=f"SLURM refused the resubmission: {tracked.refusal}")
            return False
        decision = tracked.check(self._watch, self.settings.lost_seconds)
        state = tracked.state
        if state and state.state == "PENDING" and "held" in state.reason.lower() and state.reason != tracked.held:
            tracked.held = state.reason
            self.logger.warning(f"SLURM job {state.id} waits: {state.reason}; `scontrol release {state.id}` frees it.")
        if decision.kind == "wait":
            return True
        if decision.kind == "success":
            self._finish(tracked, "success")
            self.report_job_success(tracked.info)
            return False
        # A job at its time limit missed the warning or could not be requeued; its last checkpoint remains.
        request, count = self._request(tracked), tracked.resubmissions
        limits = request.time_limits - 1 if request.signal_delay else 0
        allowed = {"memory": self.settings.oom_retries, "limit": limits, "again": NODE_RETRIES}
        if count[decision.kind] < allowed.get(decision.kind, 0):
            count[decision.kind] += 1
            self._resubmit(tracked, decision.reason)
            return True
        self._fail(tracked, decision, request)
        return False

    def _request(self, tracked: TrackedJob) -> Request:
        job, memory_factor = tracked.job, self.settings.oom_factor ** tracked.resubmissions["memory"]
        return make_request(job.resources, job.threads, self.settings, self._limits, memory_factor)

    def _resubmit(self, tracked: TrackedJob, reason: str) -> None:
        old, name, request = tracked.entry, tracked.job.name, self._request(tracked)
        self._ledger.end(old, "failed", reason)
        memory = request.memory or "the same amount"
        self.logger.warning(f"SLURM job {old.id} ({name}): {reason}; submitted again with {memory} of memory.")
        with self._submitting:
            run = self._ledger.run
            tracked.entry = replace(old, run=run, id=None, outcome=None, reason="", adopted_by=None)
            self._send([tracked], request)

    def _fail(self, tracked: TrackedJob, decision: Decision, request: Request) -> None:
        entry, reason = tracked.entry, decision.reason
        if decision.kind == "memory":
            reason += f" with {request.memory} after {tracked.resubmissions['memory'] + 1} tries; raise `mem_mb`"
        elif decision.kind == "limit":
            reason += "; raise `runtime`"
        elif decision.kind == "lost":
            final = slurm.read_sacct(entry.id)
            reason += f" (sacct reports {final})" if final else ""
        self._finish(tracked, "failed", reason)
        shown = bool(getattr(self.workflow.output_settings, "show_failed_logs", False))
        printed = [str(path) for path in (entry.log("err"), entry.log("out")) if has_content(path)]
        message = f"SLURM job {entry.id}: {reason}.{log_tail(entry, shown)}"
        self.report_job_error(tracked.info, msg=message, aux_logs=printed)

    def _finish(self, tracked: TrackedJob, outcome: str, reason: str = "") -> None:
        self._ledger.end(tracked.entry, outcome, reason)
        del self._tracked[tracked.entry.tag]

    def _report_squeue_error(self) -> None:
        if self._watch.error != self._squeue_error:
            self._squeue_error = error = self._watch.error
            self.logger.warning(f"squeue: {error} (running jobs are not affected)" if error else "squeue answers.")

    def print_job_error(self, job_info: SubmittedJobInfo, msg: str | None = None, **kwargs: Any) -> None:
        """Log the error of a job with its complete message."""
        if job_info.external_jobid is not None:
            kwargs["external_jobid"] = job_info.external_jobid
        job_info.job.log_error(msg, **kwargs)

    # -- shutdown -------------------------------------------------------------------------------

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel all submitted jobs."""
        if not self._ready:
            return
        with self._submitting:
            self._queue.waiting.clear()
            entries = [tracked.entry for tracked in self._tracked.values() if tracked.entry.id]
        if not entries:
            return
        ids = [entry.id for entry in entries]
        self.logger.info(f"Cancelling {len(ids)} SLURM jobs.")
        try:
            slurm.cancel(ids)
        except slurm.SlurmError as error:
            self.logger.error(f"scancel: {error}\nThese may still run: {' '.join(ids)}")
            return
        for entry in entries:
            self._ledger.end(entry, "cancelled")
