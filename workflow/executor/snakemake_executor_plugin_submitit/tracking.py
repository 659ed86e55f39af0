"""Submitted jobs and what was seen of them."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

from snakemake_executor_plugin_submitit.history import Entry
from snakemake_executor_plugin_submitit.outcome import WAIT, Result, Verdict, judge, ran_out_of_memory, read_result
from snakemake_executor_plugin_submitit.slurm import JobState, QueueWatch

TAIL_LINES = 20


@dataclass
class Tracked:
    """A job under way. Times are monotonic: clocks of other machines play no part.

    Attributes:
        entry: its place in the ledger, of its present submission.
        info: Snakemake's, None until it was submitted once.
        submitted: when its present submission was accepted.
        memory_factor: by how much its memory was raised.
        out_of_memory: how often it was killed for its memory.
        limits: how many time limits it may still run into without going back to the queue itself.
        lost: how often SLURM lost it with its node.
        state: SLURM's, at the last look.
    """

    entry: Entry
    info: SubmittedJobInfo | None = None
    submitted: float = field(default_factory=time.monotonic)
    memory_factor: float = 1.0
    out_of_memory: int = 0
    limits: int | None = None
    lost: int = 0
    state: JobState | None = None
    _state_seen: float = 0.0
    _missing_since: float | None = None
    _result: Result | None = None
    _result_seen: float = 0.0

    def restart(self) -> None:
        """Begin anew with a submission that was just accepted."""
        self.submitted = time.monotonic()
        self.state = self._missing_since = self._result = None

    def look(self, watch: QueueWatch, patience: float) -> Verdict:
        """What to do about the job now.

        Args:
            watch: SLURM's states; asked to hurry when a result says that something went wrong.
            patience: seconds, see `judge`.
        """
        if self.entry.id is None:  # its second submission is put off
            return WAIT
        now = time.monotonic()
        self._look_at_result(now, watch)
        answered = watch.asked > max(self.submitted, self._result_seen if self._result else 0.0)
        if answered:
            self._look_at_state(now, watch.asked, watch.states.get(self.entry.id))
        verdict = judge(
            self._result,
            now - self._result_seen,
            self.state,
            now - self._state_seen,
            answered,
            watch.asked - self._missing_since if self._missing_since is not None else 0.0,
            patience,
        )
        if verdict.kind == "failed" and ran_out_of_memory(self.entry.log("err")):
            return Verdict("memory", "out of memory")
        return verdict

    def _look_at_result(self, now: float, watch: QueueWatch) -> None:
        if self._result is not None and not self._result.damaged:
            return
        first = self._result is None
        self._result = read_result(self.entry.result) or self._result
        if self._result is not None and first:
            self._result_seen = now
            if self._result.exit != 0:
                watch.hurry()

    def _look_at_state(self, now: float, asked: float, state: JobState | None) -> None:
        if state is None:
            # From answer to answer: a squeue that stops answering loses no job.
            self._missing_since = asked if self._missing_since is None else self._missing_since
        else:
            self._missing_since = None
            if self.state is None or state.state != self.state.state:
                self._state_seen = now
        self.state = state


def make_entry(job: JobExecutorInterface, run: Path) -> Entry:
    """The place of a job in the ledger. Its tag changes when a parameter or an input file does.

    Folders that share a submit folder do not share tags.
    """
    parts = list(job.jobs) if job.is_group() else [job]
    identity = [
        [
            part.rule.name,
            sorted(part.wildcards_dict.items()),
            sorted((str(key), str(value)) for key, value in part.params.items()),
            [str(path) for path in part.output],
            [_stamp(path) for path in part.input],
        ]
        for part in parts
    ]
    return Entry(
        tag=hashlib.sha256(json.dumps([os.getcwd(), identity]).encode()).hexdigest()[:16],
        rule=job.name,
        wildcards={key: str(value) for part in parts for key, value in part.wildcards_dict.items()},
        outputs=[str(path) for part in parts for path in part.output],
        logs=[str(path) for part in parts for path in part.log],
        batch="",
        index=0,
        run=run,
    )


def tail(entry: Entry, printed_by_snakemake: bool) -> str:
    """The end of the job's own log, or of what it printed where that is empty.

    Args:
        entry: of the job.
        printed_by_snakemake: Snakemake prints the rule's logs itself.
    """
    if printed_by_snakemake and any(map(size, entry.logs)):
        return ""
    for path in [*map(Path, entry.logs), entry.log("err"), entry.log("out")]:
        if size(path):
            try:
                lines = path.read_text(errors="replace").splitlines()[-TAIL_LINES:]
            except OSError:
                continue
            return "\n".join([f"\nThe end of {path}:", *(f"    {line}" for line in lines), ""])
    return ""


def size(path: Path | str) -> int:
    """Bytes of a file, 0 where there is none."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def _stamp(path: Any) -> tuple[str, int]:
    """A path and when it was changed, 0 where it is not there."""
    try:
        return str(path), Path(path).stat().st_mtime_ns
    except OSError:
        return str(path), 0
