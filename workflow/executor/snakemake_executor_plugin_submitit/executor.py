"""The executor: it submits Snakemake's ready jobs to SLURM and reports their outcomes."""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

from snakemake_executor_plugin_submitit import slurm
from snakemake_executor_plugin_submitit.checks import check_cluster, check_environment, check_folder, partition_minutes
from snakemake_executor_plugin_submitit.history import Entry
from snakemake_executor_plugin_submitit.job import ClusterJob
from snakemake_executor_plugin_submitit.job_requests import request_of, requests_of
from snakemake_executor_plugin_submitit.ledger import Ledger
from snakemake_executor_plugin_submitit.outcome import Verdict
from snakemake_executor_plugin_submitit.resources import Request, ResourceError
from snakemake_executor_plugin_submitit.settings import GPU_REQUESTS
from snakemake_executor_plugin_submitit.submission import Batch, Waiting
from snakemake_executor_plugin_submitit.survivors import Survivors
from snakemake_executor_plugin_submitit.tracking import Tracked, make_entry, size, tail

# Resubmissions of a job that SLURM did not requeue after its node failed.
NODE_RETRIES = 3
INNER = " -m snakemake_executor_plugin_submitit.inner "


class Executor(RemoteExecutor):
    """Executor that runs jobs on SLURM through submitit."""

    # Set after the setup: the thread that polls job states starts before `__post_init__`.
    _ready = False

    def __post_init__(self) -> None:
        settings = self.workflow.executor_settings
        if settings.gpu_request not in GPU_REQUESTS:
            raise WorkflowError(f"--submitit-gpu-request is {settings.gpu_request!r}; use {', '.join(GPU_REQUESTS)}")
        self.settings = settings
        self.next_seconds_between_status_checks = settings.poll_seconds
        self._limits: dict[str, int] = {}
        self._submitting = threading.Lock()
        self._tracked: dict[JobExecutorInterface, Tracked] = {}
        self._by_tag: dict[str, JobExecutorInterface] = {}
        self._told: dict[str, str] = {}
        self._squeue_error = ""
        if any(not job.is_local and not job.is_norun for job in self.dag.needrun_jobs()):
            self._start()

    def _start(self) -> None:
        """Check the cluster and the submit folder, and prepare the first submission.

        Raises:
            WorkflowError: the cluster cannot run the jobs or does not answer, or the submit folder cannot be used.
        """
        settings, folder = self.settings, Path(self.settings.folder).absolute()
        for warning in [*check_folder(folder), *check_environment(os.environ)]:
            self.logger.warning(warning)
        try:
            self._limits = partition_minutes()
            self._array_size = slurm.max_array_size()
            if problems := check_cluster(requests_of(self.dag.needrun_jobs(), settings, self._limits)):
                raise WorkflowError("The cluster cannot run this workflow:\n" + "\n".join(f"- {p}" for p in problems))
            self._ledger = Ledger(folder, self.logger.warning)
            self._refuse_taken()
            self._survivors = Survivors(self._ledger, self.logger.warning)
        except slurm.SlurmError as error:
            raise WorkflowError(f"SLURM does not answer: {error}") from None
        except OSError as error:
            raise WorkflowError(f"The submit folder {folder} cannot be used: {error}") from None
        self._watch = slurm.QueueWatch(settings.squeue_seconds)
        self._waiting = Waiting(
            self._ledger, settings.submit_minutes, self._accepted, self._refused, self.logger.warning
        )
        self._ready = True

    def _refuse_taken(self) -> None:
        """Refuse jobs of another running Snakemake: after a failure, this one would delete the other one's outputs.

        Raises:
            WorkflowError: another Snakemake has submitted jobs for the same files.
        """
        wanted = {str(path) for job in self.dag.needrun_jobs() for path in job.output}
        taken = [entry.id or entry.rule for entry in self._ledger.taken if wanted & set(entry.outputs)]
        if taken:
            raise WorkflowError(
                f"Another Snakemake that still runs has SLURM jobs for the same files: {', '.join(taken)}. "
                "Wait for it, or stop it."
            )

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
        groups: dict[tuple[str, str], list[tuple[JobExecutorInterface, Request, Entry]]] = defaultdict(list)
        with self._submitting:
            for job in jobs:
                self.run_job_pre(job)
                entry = make_entry(job, self._ledger.run)
                try:
                    if old := self._survivors.claim(entry):
                        self._adopt(job, old)
                        continue
                    request = request_of(job, self.settings, self._limits)
                except (ResourceError, slurm.SlurmError) as error:
                    self._fail_unsubmitted(job, str(error))
                    continue
                groups[job.name, request.key].append((job, request, entry))
            for (name, _), members in groups.items():
                size_of_chunk = self._chunk(len(members))
                for first in range(0, len(members), size_of_chunk):
                    chunk = members[first : first + size_of_chunk]
                    self._send(name, [(job, entry) for job, _, entry in chunk], chunk[0][1])

    def _chunk(self, count: int) -> int:
        least = self.settings.array_from
        return min(count, self._array_size) if 0 < least <= count else 1

    def _send(self, name: str, members: list[tuple[JobExecutorInterface, Entry]], request: Request) -> None:
        for job, entry in members:
            tracked = self._tracked.setdefault(job, Tracked(entry))
            tracked.entry = entry
            if tracked.limits is None:
                tracked.limits = request.time_limits - 1 if request.signal_delay else 0
            self._by_tag[entry.tag] = job
        commands = [self._cluster_job(job, entry, request) for job, entry in members]
        prologue = self.settings.prologue.splitlines()
        self._waiting.send(Batch(commands, [entry for _, entry in members], request, name, prologue))

    def _cluster_job(self, job: JobExecutorInterface, entry: Entry, request: Request) -> ClusterJob:
        command = self.format_job_exec(job).replace(
            " -m snakemake ", " -m snakemake_executor_plugin_submitit.inner ", 1
        )
        if self.settings.container:
            command = f"{self.settings.container} bash -c {shlex.quote(command)}"
        return ClusterJob(command, entry.tag, str(entry.events), request.time_limits, request.signal_delay)

    def _accepted(self, batch: Batch) -> None:
        for entry in batch.entries:
            job = self._by_tag[entry.tag]
            tracked = self._tracked[job]
            tracked.restart()
            if tracked.info is None:
                tracked.info = SubmittedJobInfo(job, external_jobid=entry.id)
                self.report_job_submission(tracked.info)
            else:
                tracked.info.external_jobid = entry.id
        what = f"array of {len(batch.jobs)}" if len(batch.jobs) > 1 else "job"
        self.logger.info(f"Submitted {batch.name} as SLURM {what} {batch.entries[0].id.partition('_')[0]}.")

    def _refused(self, batch: Batch, words: str) -> None:
        for entry in batch.entries:
            self._ledger.end(entry, "failed", words)
            job = self._by_tag.pop(entry.tag)
            tracked = self._tracked.pop(job)
            if tracked.info is None:
                self._fail_unsubmitted(job, words)
            else:  # it ran before: the next status check removes it
                tracked.info.aux = {"refused": words}

    def _fail_unsubmitted(self, job: JobExecutorInterface, words: str) -> None:
        self.report_job_error(SubmittedJobInfo(job), msg=f"SLURM does not take the job: {words}")

    def _adopt(self, job: JobExecutorInterface, old: Entry) -> None:
        self._ledger.adopt(old)
        info = SubmittedJobInfo(job, external_jobid=old.id)
        self._tracked[job] = Tracked(old, info=info)
        self._by_tag[old.tag] = job
        self.report_job_submission(info)
        self.logger.info(f"SLURM job {old.id} of an earlier run is this job; not submitted again.")

    # -- status ---------------------------------------------------------------------------------

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        """Check results and SLURM states, and yield the unfinished jobs."""
        if not self._ready:
            return
        with self._submitting:
            self._waiting.retry()
        started = time.monotonic()
        if active_jobs:
            self._watch.poll()
            self._tell_squeue_error()
        for info in active_jobs:
            try:
                under_way = self._check(info)
            except OSError as error:  # a temporary filesystem failure must not end the run
                self.logger.warning(f"SLURM job {info.external_jobid}: {error}; looking again")
                under_way = True
            if under_way:
                yield info
        # A slow filesystem is polled less often.
        pause = max(self.settings.poll_seconds, 4 * (time.monotonic() - started))
        self.next_seconds_between_status_checks = pause

    def _check(self, info: SubmittedJobInfo) -> bool:
        """Check one job and return whether it is unfinished."""
        if info.aux and "refused" in info.aux:
            self.report_job_error(info, msg=f"SLURM does not take the job again: {info.aux['refused']}")
            return False
        tracked = self._tracked[info.job]
        verdict = tracked.look(self._watch, self.settings.lost_seconds)
        self._tell_held(tracked.state)
        return self._settle(tracked, verdict)

    def _settle(self, tracked: Tracked, verdict: Verdict) -> bool:
        """Act on a verdict and return whether the job is unfinished."""
        info, entry = tracked.info, tracked.entry
        match verdict.kind:
            case "wait":
                return True
            case "success":
                self._forget(tracked, "success")
                self.report_job_success(info)
                return False
            case "memory" if tracked.out_of_memory < self.settings.oom_retries:
                tracked.out_of_memory += 1
                tracked.memory_factor *= self.settings.oom_factor
                self._resubmit(tracked, verdict.reason)
                return True
            case "limit" if tracked.limits:
                # It missed the warning or could not be requeued; its last checkpoint remains.
                tracked.limits -= 1
                self._resubmit(tracked, "its time limit was reached")
                return True
            case "again" if tracked.lost < NODE_RETRIES:
                tracked.lost += 1
                self._resubmit(tracked, verdict.reason)
                return True
        reason = verdict.reason
        if verdict.kind == "memory":
            limit = request_of(info.job, self.settings, self._limits, tracked.memory_factor).parameters
            asked = limit.get("mem") or limit.get("mem_per_cpu")
            reason += f" with {asked} after {tracked.out_of_memory + 1} tries; raise `mem_mb`"
        elif entry.id and verdict.reason.startswith("SLURM no longer knows"):
            final = slurm.read_sacct([entry.id]).get(entry.id)
            reason += f" (sacct says {final})" if final else ""
        self._forget(tracked, "failed", reason)
        shown = bool(getattr(self.workflow.output_settings, "show_failed_logs", False))
        printed = [str(path) for path in (entry.log("err"), entry.log("out")) if size(path)]
        self.report_job_error(info, msg=f"SLURM job {entry.id}: {reason}.{tail(entry, shown)}", aux_logs=printed)
        return False

    def _resubmit(self, tracked: Tracked, why: str) -> None:
        job, old = tracked.info.job, tracked.entry
        self._ledger.end(old, "failed", why)
        request = request_of(job, self.settings, self._limits, tracked.memory_factor)
        asked = request.parameters.get("mem") or request.parameters.get("mem_per_cpu") or "what it had"
        self.logger.warning(f"SLURM job {old.id} ({job.name}): {why}; submitted again with {asked} of memory.")
        with self._submitting:
            self._send(job.name, [(job, make_entry(job, self._ledger.run))], request)

    def _forget(self, tracked: Tracked, outcome: str, reason: str = "") -> None:
        self._ledger.end(tracked.entry, outcome, reason)
        self._tracked.pop(tracked.info.job)
        self._by_tag.pop(tracked.entry.tag, None)

    def _tell_held(self, state: slurm.JobState | None) -> None:
        """Log once that a job is held, with its reason."""
        if state is None or state.state != "PENDING" or "held" not in state.reason.lower():
            return
        if self._told.get(state.id) != state.reason:
            self._told[state.id] = state.reason
            self.logger.warning(f"SLURM job {state.id} waits: {state.reason}; `scontrol release {state.id}` frees it.")

    def _tell_squeue_error(self) -> None:
        if self._watch.error != self._squeue_error:
            self._squeue_error = self._watch.error
            self.logger.warning(
                f"squeue: {self._squeue_error} (no job is given up for that)"
                if self._squeue_error
                else "squeue answers."
            )

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
            self._waiting.batches.clear()
            tracked = list(self._tracked.values())
        ids = [part.entry.id for part in tracked if part.entry.id]
        if not ids:
            return
        self.logger.info(f"Cancelling {len(ids)} SLURM jobs.")
        try:
            slurm.cancel(ids)
        except slurm.SlurmError as error:
            self.logger.error(f"scancel: {error}\nThese may still run: {' '.join(ids)}")
            return
        for part in tracked:
            self._ledger.end(part.entry, "cancelled")

    def shutdown(self) -> None:
        """Stop the status checks."""
        super().shutdown()
        if self._ready:
            self._watch.close()
