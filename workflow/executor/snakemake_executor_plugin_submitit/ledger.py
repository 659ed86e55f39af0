"""Ledger on disk that maps workflow jobs to SLURM jobs, so that a new run can adopt them.

Each Snakemake run has its own folder, `<submit folder>/<run>/`. Its mode is 0700, since it holds pickles that jobs
execute. It contains `ledger.jsonl`, events and result of each job, submitit's pickles and SLURM's logs. Only one run
writes to a ledger. A batch is recorded before its submission and after its acceptance, so that a crash in between is
detected.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

from snakemake_executor_plugin_submitit.records import check_fields, is_name, is_path, is_text, is_time, parse_lines
from snakemake_executor_plugin_submitit.submit_folder import check_private, list_runs, make_private, make_run

log = logging.getLogger(__name__)
LEDGER = "ledger.jsonl"
KEPT_RUNS = 20


@dataclass
class Entry:
    """Last known state of a job.

    Attributes:
        tag: identifies the job across runs: a hash of its rule, wildcards, parameters, inputs and outputs.
        rule: name of the rule.
        outputs: paths, relative to the working directory.
        logs: paths of the rule's own logs.
        batch: id of the batch, which is also SLURM's comment of the job.
        run: folder of the run that submitted the job.
        id: SLURM's job id, `123` or `123_4`; None until the batch is accepted.
        submitted: seconds since the epoch, on the clock of the login node.
        outcome: `success`, `failed`, `cancelled`, or None while the job is open.
        reason: reason for a failure.
        adopted_by: folder of the run that adopted the job; None while `run` manages it.
    """

    tag: str
    rule: str
    outputs: list[str]
    logs: list[str]
    batch: str
    run: Path
    id: str | None = None
    submitted: float = 0.0
    outcome: str | None = None
    reason: str = ""
    adopted_by: Path | None = None

    @property
    def manager(self) -> Path:
        """Folder of the run that waits for the job."""
        return self.adopted_by or self.run

    @property
    def result(self) -> Path:
        """Path of the job's result file."""
        return self.run / f"{self.id}_0_result.json"

    @property
    def events(self) -> Path:
        """Path of the job's event log."""
        return self.run / f"{self.tag}_events.jsonl"

    def log(self, kind: str = "err") -> Path:
        """Return the path of SLURM's log of the job, `out` or `err`."""
        return self.run / f"{self.id}_0_log.{kind}"


def make_entry(job: JobExecutorInterface, run: Path) -> Entry:
    """Return a new ledger entry of a job. Its tag changes with the parameters and the input files.

    The tag includes the working directory, so that workflows can share a submit folder.
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
        outputs=[str(path) for part in parts for path in part.output],
        logs=[str(path) for part in parts for path in part.log],
        batch="",
        run=run,
    )


def _stamp(path: Any) -> tuple[str, int]:
    """Return a path and its modification time in ns, 0 if it is missing."""
    try:
        return str(path), Path(path).stat().st_mtime_ns
    except OSError:
        return str(path), 0


def is_job_id(value: Any) -> bool:
    """Return whether a value is SLURM's id of a job or of an array task."""
    return isinstance(value, str) and re.fullmatch(r"[0-9]+(_[0-9]+)?", value) is not None


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


# Fields of a ledger's lines by event, and of each job in a `submit` line.
_JOB = {"tag": is_name, "rule": is_text, "outputs": _list_of(is_path), "logs": _list_of(is_path)}
_LINES = {
    "submit": {"batch": is_name, "jobs": _list_of(lambda job: bool(check_fields(job, _JOB))), "time": is_time},
    "accept": {"batch": is_name, "ids": _list_of(is_job_id)},
    "adopt": {"tag": is_name, "id": is_job_id},
    "end": {
        "tag": is_name,
        "id": lambda value: value is None or is_job_id(value),
        "outcome": lambda value: value in ("success", "failed", "cancelled"),
        "reason": is_text,
    },
}


class History:
    """All runs in a submit folder, read from their ledgers; damaged lines are skipped and reported.

    Args:
        folder: the submit folder, which may be missing.

    Attributes:
        entries: tag -> newest entry.
        damage: run -> a message about skipped lines of its ledger.
        unrecorded: run -> batches that it submitted without a valid line in its ledger.

    Raises:
        WorkflowError: others can write to the folder or to a run, see `check_private`.
        OSError: a ledger cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.entries: dict[str, Entry] = {}
        self.damage: dict[Path, str] = {}
        self.unrecorded: dict[Path, set[str]] = {}
        if folder.exists():
            check_private(folder)
        for run in list_runs(folder):
            check_private(run)
            if (run / LEDGER).exists():
                self._read(run)

    def _read(self, run: Path) -> None:
        content, batches = (run / LEDGER).read_bytes(), {}
        if content and not content.endswith(b"\n") and _is_locked(run):
            content = content[: content.rfind(b"\n") + 1]  # the last line is being written
        damage = parse_lines(run / LEDGER, content, lambda value: self._apply(value, run, batches))
        if damage:
            self.damage[run] = damage
            # The sbatch scripts name every submitted batch as the job's comment.
            scripts = [path for path in run.glob("*submission*.sh") if not path.is_symlink()]
            comment = re.compile(r"^#SBATCH --comment=(\S+)$", re.MULTILINE)
            found = (comment.search(script.read_text(errors="replace")) for script in scripts)
            self.unrecorded[run] = {match[1] for match in found if match} - set(batches)

    def _apply(self, value: Any, run: Path, batches: dict[str, list[Entry]]) -> None:
        """Apply a line of a ledger; raise ValueError for an invalid one."""
        kind = check_fields(value, {"event": lambda value: isinstance(value, str) and value in _LINES})["event"]
        line = check_fields(value, _LINES[kind])
        if kind == "submit":
            batches[line["batch"]] = made = [
                Entry(**{name: job[name] for name in _JOB}, batch=line["batch"], run=run, submitted=line["time"])
                for job in line["jobs"]
            ]
            self.entries |= {entry.tag: entry for entry in made}
        elif kind == "accept":
            batch = batches.get(line["batch"], [])
            if len(batch) != len(line["ids"]):
                raise ValueError(f"no {len(line['ids'])} jobs were submitted as {line['batch']}")
            for entry, job_id in zip(batch, line["ids"], strict=True):
                entry.id = job_id
        elif (entry := self.entries.get(line["tag"])) and entry.id == line["id"]:
            if kind == "adopt":
                entry.adopted_by = run
            else:
                entry.outcome, entry.reason = line["outcome"], line["reason"]


def _is_locked(run: Path) -> bool:
    """Return whether the Snakemake process of a run holds its ledger's lock."""
    with (run / LEDGER).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a filesystem without locks
            return False
        return False


class Ledger:
    """Ledger of this run, locked until the run ends.

    Args:
        folder: the submit folder, created if it is missing.
        warn: function that prints a warning.

    Attributes:
        run: folder of this run.
        orphaned: open entries of ended runs.
        foreign: open entries of other running Snakemakes.
        unrecorded: batches of ended runs whose jobs are unknown, because the ledger is damaged.

    Raises:
        WorkflowError: other users can write to the folder, or the ledger of a running Snakemake is damaged.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = log.warning) -> None:
        make_private(folder)
        history = History(folder)
        open_entries = [entry for entry in history.entries.values() if entry.outcome is None]
        managers = {entry.manager for entry in open_entries}
        running = {run for run in managers | set(history.damage) if _is_locked(run)}
        for run, message in history.damage.items():
            if run in running:  # its jobs would be submitted twice and write the same files
                raise WorkflowError(f"{message}; the Snakemake that writes it still runs: wait for it, or stop it")
            warn(f"{message}; skipped")
        self.unrecorded = set[str]().union(*history.unrecorded.values())
        self.orphaned = [entry for entry in open_entries if entry.manager not in running]
        self.foreign = [entry for entry in open_entries if entry.manager in running]
        for old in list_runs(folder)[:-KEPT_RUNS]:
            if old not in {entry.run for entry in open_entries}:
                shutil.rmtree(old, ignore_errors=True)
        self.run = make_run(folder)
        self._file = (self.run / LEDGER).open("x")
        with contextlib.suppress(OSError):  # a filesystem without locks: Snakemake's own lock remains
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def submit(self, batch: str, entries: list[Entry]) -> None:
        """Record a batch of jobs before its submission."""
        jobs = [{name: getattr(entry, name) for name in _JOB} for entry in entries]
        self._write(True, event="submit", batch=batch, jobs=jobs)

    def accept(self, batch: str, ids: list[str]) -> None:
        """Record SLURM's job ids of a batch."""
        self._write(True, event="accept", batch=batch, ids=ids)

    def adopt(self, entry: Entry) -> None:
        """Record that this run adopts a job of an earlier run."""
        self._write(False, event="adopt", tag=entry.tag, id=entry.id, run=entry.run.name)

    def end(self, entry: Entry, outcome: str, reason: str = "") -> None:
        """Record the outcome of a job."""
        entry.outcome, entry.reason = outcome, reason
        self._write(False, event="end", tag=entry.tag, id=entry.id, outcome=outcome, reason=reason)

    def _write(self, sync: bool, **line: Any) -> None:
        """Append a line; ``sync`` flushes it to disk, for facts that no other file holds after a machine crash."""
        self._file.write(json.dumps({**line, "time": round(time.time(), 3)}) + "\n")
        self._file.flush()
        if sync:
            os.fsync(self._file.fileno())
