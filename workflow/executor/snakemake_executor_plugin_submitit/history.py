"""Reading of the ledgers in a submit folder; damaged lines are skipped and reported."""

from __future__ import annotations

import fcntl
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_submitit.private import check_private
from snakemake_executor_plugin_submitit.records import (
    check_fields,
    describe,
    is_name,
    is_path,
    is_text,
    is_time,
    read_lines,
)

LEDGER = "ledger.jsonl"
# Names have six digits up to a million runs.
_RUN = re.compile(r"[0-9]{6,9}")
_COMMENT = re.compile(r"^#SBATCH --comment=(\S+)$", re.MULTILINE)


@dataclass
class Entry:
    """Last known state of a job.

    Attributes:
        tag: identifies the job across runs: a hash of its rule, wildcards, parameters, inputs and outputs.
        rule: name of the rule.
        outputs: paths, relative to the working directory.
        logs: paths of the rule's own logs.
        batch: id of the batch, which is also SLURM's comment of the job.
        index: position in the batch.
        run: folder of the run that submitted the job.
        id: SLURM's job id, `123` or `123_4`; None until the batch is accepted.
        keeper: folder of the run that adopted the job; None while `run` manages it.
        submitted: seconds since the epoch, on the clock of the login node.
        outcome: `success`, `failed`, `cancelled`, or None while the job is open.
        reason: reason for a failure.
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
        """Path of the job's result file."""
        return self.run / f"{self.id}_0_result.json"

    @property
    def events(self) -> Path:
        """Path of the job's event log."""
        return self.run / f"{self.tag}_events.jsonl"

    def log(self, kind: str = "err") -> Path:
        """Return the path of SLURM's log of the job, `out` or `err`."""
        return self.run / f"{self.id}_0_log.{kind}"


def is_job_id(value: Any) -> bool:
    """Return whether a value is SLURM's id of a job or of an array task."""
    return isinstance(value, str) and re.fullmatch(r"[0-9]+(_[0-9]+)?", value) is not None


def _are_paths(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_path, value))


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_text, [*value, *value.values()]))


_JOB = {"tag": is_name, "rule": is_text, "wildcards": _are_texts, "outputs": _are_paths, "logs": _are_paths}
_LINES = {
    "submit": {"batch": is_name, "jobs": lambda value: isinstance(value, list), "time": is_time},
    "accept": {"batch": is_name, "ids": lambda value: isinstance(value, list) and all(map(is_job_id, value))},
    "adopt": {"tag": is_name, "id": is_job_id},
    "end": {
        "tag": is_name,
        "id": lambda value: value is None or is_job_id(value),
        "outcome": lambda value: value in ("success", "failed", "cancelled"),
        "reason": is_text,
    },
}


class History:
    """All runs in a submit folder, read from their ledgers.

    Args:
        folder: the submit folder, which may be missing.

    Attributes:
        entries: tag -> newest entry.
        damage: run -> a message about skipped lines of its ledger.
        lost: run -> batches that it submitted and that no valid line of its ledger names.

    Raises:
        WorkflowError: others can write to the folder or to a run, see `check_private`.
        OSError: a ledger cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.entries: dict[str, Entry] = {}
        self.damage: dict[Path, str] = {}
        self.lost: dict[Path, set[str]] = {}
        if folder.exists():
            check_private(folder)
        for run in runs(folder):
            check_private(run)
            if (run / LEDGER).exists():
                self._read(run)

    def _read(self, run: Path) -> None:
        content, batches = (run / LEDGER).read_bytes(), {}
        if content and not content.endswith(b"\n") and is_locked(run):
            content = content[: content.rfind(b"\n") + 1]  # the last line is being written
        bad = read_lines(content, lambda value: self._use(value, run, batches))
        if bad:
            self.damage[run] = describe(run / LEDGER, bad)
            self.lost[run] = _submitted(run) - set(batches)

    def _use(self, value: Any, run: Path, batches: dict[str, list[Entry]]) -> None:
        """Apply a line of a ledger; raise ValueError for an invalid one."""
        kind = check_fields(value, {"event": lambda value: isinstance(value, str) and value in _LINES})["event"]
        line = check_fields(value, _LINES[kind])
        if kind == "submit":
            batches[line["batch"]] = made = _entries(line, run)
            self.entries |= {entry.tag: entry for entry in made}
        elif kind == "accept":
            batch = batches.get(line["batch"])
            if batch is None or len(batch) != len(line["ids"]):
                raise ValueError(f"no {len(line['ids'])} jobs were submitted as {line['batch']}")
            for entry, job_id in zip(batch, line["ids"], strict=True):
                entry.id = job_id
        else:
            entry = self.entries.get(line["tag"])
            if entry and entry.id == line["id"] and kind == "adopt":
                entry.keeper = run
            elif entry and entry.id == line["id"]:
                entry.outcome, entry.reason = line["outcome"], line["reason"]


def _entries(line: dict[str, Any], run: Path) -> list[Entry]:
    """Return the entries of a batch; raise ValueError for an invalid job."""
    for job in line["jobs"]:
        if unknown := set(check_fields(job, _JOB)) - set(_JOB):
            raise ValueError(f"a job has `{min(unknown)}`")
    jobs = enumerate(line["jobs"])
    return [Entry(batch=line["batch"], index=index, run=run, submitted=line["time"], **job) for index, job in jobs]


def _submitted(run: Path) -> set[str]:
    """Return the batches of a run, from the job comments in its sbatch scripts."""
    texts = [path.read_text(errors="replace") for path in run.glob("*submission*.sh") if not path.is_symlink()]
    return {match[1] for text in texts if (match := _COMMENT.search(text))}


def runs(folder: Path) -> list[Path]:
    """Return the folders of all runs, oldest first."""
    paths = (path for path in folder.glob("[0-9]*") if _RUN.fullmatch(path.name))
    return sorted((path for path in paths if path.is_dir() and not path.is_symlink()), key=lambda path: int(path.name))


def is_locked(run: Path) -> bool:
    """Return whether the Snakemake process of a run holds its ledger's lock."""
    with (run / LEDGER).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a filesystem without locks
            return False
        return False
