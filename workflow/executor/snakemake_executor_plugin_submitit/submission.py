"""Submission of jobs and job arrays through submitit, with retries while the controller is unreachable."""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_submitit import slurm
from snakemake_executor_plugin_submitit.job import ClusterJob
from snakemake_executor_plugin_submitit.ledger import Entry, Ledger
from snakemake_executor_plugin_submitit.resources import Request
from snakemake_executor_plugin_submitit.submit_folder import check_private

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0
# Messages about too many jobs at once: a smaller array may be accepted.
_TOO_MANY = re.compile(r"accounting/QOS policy|job array specification|submit.*limit|too many", re.IGNORECASE)


@dataclass
class Batch:
    """Jobs that are submitted to SLURM in one call.

    Attributes:
        jobs: the jobs to run.
        entries: their ledger entries.
        request: the common request of all jobs.
        name: job name.
        prologue: shell lines that run before each job.
        id: SLURM's comment, which identifies a submission whose answer was lost.
        tried: true after the first attempt.
        waiting_since: monotonic time of the first attempt.
    """

    jobs: list[ClusterJob]
    entries: list[Entry]
    request: Request
    name: str
    prologue: list[str] = field(default_factory=list)
    id: str = field(default_factory=lambda: f"snakemake-{uuid.uuid4().hex[:12]}")
    tried: bool = False
    waiting_since: float | None = None

    def halves(self) -> list[Batch]:
        """Split the batch into two."""
        middle = len(self.jobs) // 2
        parts = (slice(None, middle), slice(middle, None))
        return [Batch(self.jobs[p], self.entries[p], self.request, self.name, self.prologue) for p in parts]


class SubmissionRefused(RuntimeError):
    """Refusal of a batch, with sbatch's message."""


class ControllerUnreachable(RuntimeError):
    """Transient failure: the controller is unreachable or busy, and the batch can be resubmitted."""


def submit(batch: Batch, ledger: Ledger) -> None:
    """Submit a batch and set the job ids of its entries.

    Raises:
        SubmissionRefused: sbatch refuses, or other users can write to the folder of the job's pickle.
        ControllerUnreachable: the controller is unreachable or busy.
    """
    try:
        if batch.tried:  # cancel jobs of an earlier attempt whose answer was lost
            submitted = [job.id for job in slurm.read_squeue().values() if job.comment == batch.id and job.alive]
            slurm.cancel(submitted)
    except slurm.SlurmError as error:
        raise ControllerUnreachable(str(error)) from None
    if not batch.tried:
        batch.tried = True
        for entry in batch.entries:
            entry.batch, entry.run, entry.id = batch.id, ledger.run, None
        ledger.submit(batch.id, batch.entries)
    try:
        # The job executes the pickle in this folder, so that only this user may write there.
        check_private(ledger.run.parent)
        check_private(ledger.run)
        ids = _sbatch(batch, ledger.run)
    except (WorkflowError, OSError) as error:
        raise SubmissionRefused(str(error)) from None
    except slurm.SlurmError as error:
        refused = ControllerUnreachable if slurm.is_transient(str(error)) else SubmissionRefused
        raise refused(str(error)) from None
    for entry, job in zip(batch.entries, ids, strict=True):
        entry.id = job
    ledger.accept(batch.id, ids)


def _sbatch(batch: Batch, folder: Path) -> list[str]:
    """Submit a batch through submitit and return SLURM's job ids.

    Raises:
        SlurmError: sbatch fails; the error has its message.
    """
    from submitit import SlurmExecutor

    try:
        executor = SlurmExecutor(folder=folder)
        # No pause between submissions: arrays and Snakemake's limits bound the rate.
        executor._throttling = 0
        executor.update_parameters(
            **batch.request.parameters,
            job_name=batch.name,
            comment=batch.id,
            wckey=None,
            array_parallelism=len(batch.jobs),
            # SLURM 22.05 and newer do not pass --cpus-per-task on to srun.
            setup=["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK", *batch.prologue],
        )
        return [job.job_id for job in executor.submit_array(batch.jobs)]
    except (OSError, RuntimeError) as error:  # submitit's errors are RuntimeErrors
        _clean(folder)
        words = [line for line in str(error).splitlines() if line.startswith("sbatch: ")]
        raise slurm.SlurmError("\n".join(words) or str(error) or "sbatch failed without a message") from None


def _clean(folder: Path) -> None:
    """Remove the files of a failed attempt; files of submitted jobs carry the job's id and stay."""
    with contextlib.suppress(OSError):
        for path in [*folder.glob("*.pkl"), *folder.glob(".submission_file_*")]:
            if re.fullmatch(r"[0-9a-f]{32}", path.stem) or not (path.suffix == ".pkl" or path.is_symlink()):
                path.unlink()


class SubmissionQueue:
    """Submission of batches, with those that wait for the controller.

    Args:
        ledger: ledger of the run.
        minutes: minutes of retries for a batch.
        accepted: function that gets each submitted batch.
        refused: function that gets each refused batch and sbatch's message.
        warn: function that prints a message.
    """

    def __init__(
        self,
        ledger: Ledger,
        minutes: float,
        accepted: Callable[[Batch], None],
        refused: Callable[[Batch, str], None],
        warn: Callable[[str], None],
    ) -> None:
        self.ledger, self.minutes, self.warn = ledger, minutes, warn
        self.accepted, self.refused = accepted, refused
        self.waiting: list[Batch] = []
        self._pause, self._next_try = FIRST_PAUSE, 0.0

    def send(self, batch: Batch) -> None:
        """Submit a batch now or later; split an array that exceeds a limit."""
        batch.waiting_since = batch.waiting_since or time.monotonic()
        # Only one batch probes the controller, since an attempt can take half a minute.
        if time.monotonic() < self._next_try:
            self.waiting.append(batch)
            return
        try:
            submit(batch, self.ledger)
        except SubmissionRefused as error:
            if len(batch.jobs) > 1 and _TOO_MANY.search(str(error)):
                for half in batch.halves():
                    self.send(half)
            else:
                self.refused(batch, str(error))
        except ControllerUnreachable as error:
            pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
            self._next_try = time.monotonic() + pause
            waited = time.monotonic() - batch.waiting_since
            if waited > 60 * self.minutes:
                self.refused(batch, f"{error}\n(tried for {waited / 60:.0f} minutes)")
            else:
                self.warn(f"{str(error).splitlines()[-1]}; trying again in {pause:.0f} s")
                self.waiting.append(batch)
        else:
            self._pause = FIRST_PAUSE
            self.accepted(batch)

    def retry(self) -> None:
        """Resubmit the waiting batches."""
        due, self.waiting = self.waiting, []
        for batch in due:
            self.send(batch)
