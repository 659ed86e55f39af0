"""Which job of the workflow is which job of SLURM, kept on disk so that a new run can go on from it.

A run of Snakemake has a folder of its own, `<submit folder>/<run>/`, mode 0700 since it holds pickles that
jobs execute: `ledger.jsonl`, `events.jsonl` of each job, submitit's pickles and SLURM's logs. Only one run writes
to a ledger. A batch is noted before it is submitted and once it is accepted, so that a crash in between is seen.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEPT_RUNS = 20


@dataclass
class Entry:
    """What is known of a job, from the newest line about it.

    Attributes:
        tag: names the job across runs: a hash of its rule, wildcards, parameters, inputs and outputs.
        rule: name of the rule.
        outputs: paths, relative to the working directory.
        logs: paths of the rule's own logs.
        batch: what was submitted together; SLURM's comment of the job.
        index: place in the batch.
        run: folder of the run that submitted it.
        id: SLURM's job id, `123` or `123_4`; None until the batch is accepted.
        keeper: folder of the run that looks after it: `run`, or the one that took it over.
        submitted: seconds since the epoch, by the clock of the login node.
        outcome: `success`, `failed`, `cancelled`, or None while it is open.
        reason: why it failed.
    """

    tag: str
    rule: str
    outputs: list[str]
    logs: list[str]
    batch: str
    index: int
    run: Path
    id: str | None = None
    submitted: float = 0.0
    outcome: str | None = None
    reason: str = ""
    wildcards: dict[str, str] = field(default_factory=dict)
    keeper: Path | None = None

    @property
    def result(self) -> Path:
        """Where submitit writes the job's result."""
        return self.run / f"{self.id}_0_result.pkl"

    @property
    def events(self) -> Path:
        """Starts and stops of the job, one JSON line each."""
        return self.run / f"{self.tag}_events.jsonl"

    def log(self, kind: str = "err") -> Path:
        """SLURM's log of the job: `out` or `err`."""
        return self.run / f"{self.id}_0_log.{kind}"


class Ledger:
    """The ledger of this run, locked for as long as the run lives.

    Args:
        folder: the submit folder, made when it is not there.

    Attributes:
        run: folder of this run.
        left: open entries of runs that are over.
        taken: open entries of runs that still live.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        open_entries = [entry for entry in read_entries(folder).values() if entry.outcome is None]
        living = {run for run in {entry.keeper or entry.run for entry in open_entries} if _is_locked(run)}
        self.left = [entry for entry in open_entries if (entry.keeper or entry.run) not in living]
        self.taken = [entry for entry in open_entries if (entry.keeper or entry.run) in living]
        for old in _runs(folder)[:-KEPT_RUNS]:
            if old not in {entry.run for entry in open_entries}:
                shutil.rmtree(old, ignore_errors=True)
        self.run = _new_run(folder)
        self._file = (self.run / "ledger.jsonl").open("a")
        with contextlib.suppress(OSError):  # a filesystem without locks: Snakemake's own lock must do
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def submit(self, batch: str, entries: list[Entry]) -> None:
        """Note jobs that are about to be submitted together."""
        jobs = [
            {"tag": e.tag, "rule": e.rule, "wildcards": e.wildcards, "outputs": e.outputs, "logs": e.logs}
            for e in entries
        ]
        self._write(True, event="submit", batch=batch, jobs=jobs)

    def accept(self, batch: str, ids: list[str]) -> None:
        """Note SLURM's ids of a batch."""
        self._write(True, event="accept", batch=batch, ids=ids)

    def adopt(self, entry: Entry) -> None:
        """Take a job of an earlier run over."""
        self._write(False, event="adopt", tag=entry.tag, id=entry.id, run=entry.run.name)

    def end(self, entry: Entry, outcome: str, reason: str = "") -> None:
        """Note how a job ended."""
        entry.outcome, entry.reason = outcome, reason
        self._write(False, event="end", tag=entry.tag, id=entry.id, outcome=outcome, reason=reason)

    def _write(self, at_once: bool, **line: Any) -> None:
        """Append a line; ``at_once`` to the disk, for what no other file would tell after a crash of the machine."""
        self._file.write(json.dumps({**line, "time": round(time.time(), 3)}) + "\n")
        self._file.flush()
        if at_once:
            os.fsync(self._file.fileno())


def read_entries(folder: Path) -> dict[str, Entry]:
    """Tag -> newest entry, over all runs in a submit folder."""
    entries: dict[str, Entry] = {}
    for run in _runs(folder):
        batches: dict[str, list[Entry]] = {}
        for line in _lines(run / "ledger.jsonl"):
            if line["event"] == "submit":
                made = [
                    Entry(batch=line["batch"], index=index, run=run, submitted=line["time"], **job)
                    for index, job in enumerate(line["jobs"])
                ]
                batches[line["batch"]] = made
                entries |= {entry.tag: entry for entry in made}
            elif line["event"] == "accept":
                for entry, job_id in zip(batches.get(line["batch"], ()), line["ids"], strict=False):
                    entry.id = job_id
            elif line["event"] == "adopt":
                entry = entries.get(line["tag"])
                if entry and entry.id == line["id"]:
                    entry.keeper = run
            elif line["event"] == "end":
                entry = entries.get(line["tag"])
                if entry and entry.id == line["id"]:
                    entry.outcome, entry.reason = line["outcome"], line["reason"]
    return entries


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a file that may have been cut off in the middle of one."""
    if not path.exists():
        return
    for text in path.read_text().splitlines():
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            continue


def _runs(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("[0-9]*") if path.name.isdigit() and path.is_dir()), key=_number)


def _number(run: Path) -> int:
    return int(run.name)


def _new_run(folder: Path) -> Path:
    """A folder that sorts after all others, whatever the clock says."""
    while True:
        runs = _runs(folder)
        run = folder / f"{_number(runs[-1]) + 1 if runs else 1:06d}"
        try:
            run.mkdir(mode=0o700)
        except FileExistsError:  # another Snakemake was faster
            continue
        return run


def _is_locked(run: Path) -> bool:
    """Whether the Snakemake of a run still lives."""
    with (run / "ledger.jsonl").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a filesystem without locks
            return False
        return False
