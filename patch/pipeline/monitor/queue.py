"""SLURM submissions and their states, from the submit folder and one call of squeue."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from snakemake_executor_plugin_submitit import records, slurm
from snakemake_executor_plugin_submitit.ledger import Entry, History
from snakemake_interface_common.exceptions import WorkflowError

log = logging.getLogger(__name__)
# States of an unfinished job in which it occupies a node.
RUNNING = {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING", "SUSPENDED", "STOPPED"}
# Values that squeue prints for an empty field.
NOTHING = ("", "None", "N/A", "(null)")


@dataclass(frozen=True)
class Events:
    """Start and stop events that a job recorded on its nodes."""

    last: dict = field(default_factory=dict)  # newest event
    starts: int = 0  # number of starts
    time_limits: int = 0  # number of time limits that were reached
    written: float | None = None  # time of the newest event by the clock of the file system

    @property
    def kind(self) -> str:
        """Kind of the newest event: `start`, `time limit`, `terminated`, `end`, or empty."""
        return self.last.get("event", "")

    @property
    def started(self) -> str | None:
        """Start time by the node's clock in SLURM's format, None unless the newest event is a start."""
        if self.kind != "start":
            return None
        return datetime.fromtimestamp(self.last["time"]).isoformat(timespec="seconds")


class Queue:
    """Submissions of a submit folder.

    Args:
        folder: the submit folder; it need not exist.

    Attributes:
        note: reason why the state of SLURM's queue is unknown, empty if it is known or not needed.
    """

    def __init__(self, folder: Path) -> None:
        self.note = ""
        self._states: dict[str, slurm.JobState] = {}
        entries: dict[str, Entry] = {}
        try:
            history = History(folder)
        except OSError as error:
            self.note = f"{folder}: cannot be read ({error.strerror}); the state of SLURM's queue is unknown"
        except WorkflowError as error:
            self.note = f"the state of SLURM's queue is unknown: {error}"
        else:
            entries = history.entries
            for damage in history.damage.values():
                log.warning("%s; skipped", damage)
        self._by_output: dict[str, Entry] = {}
        for entry in sorted(entries.values(), key=lambda entry: (entry.run.name, entry.submitted)):
            self._by_output.update(dict.fromkeys(entry.outputs, entry))
        # squeue is called after the ledger is read, so that a job with an id that squeue does not list has ended.
        if any(entry.outcome is None for entry in self._by_output.values()):
            try:
                self._states = slurm.read_squeue()
            except slurm.SlurmError as error:
                self.note = f"no answer from SLURM; states are from files alone ({str(error).splitlines()[-1]})"

    def newest(self, outputs: Iterable[str]) -> Entry | None:
        """Return the newest submission that makes one of these files, or None."""
        return next((self._by_output[path] for path in outputs if path in self._by_output), None)

    def state(self, entry: Entry, events: Events, made: bool) -> dict[str, str | None]:
        """Return the state of a submission that has no outcome in the ledger, as fields of `JobStatus`.

        Args:
            entry: the submission.
            events: its events.
            made: True if its outputs exist.
        """
        if entry.id is None:
            return {"state": "pending", "reason": "SLURM has not accepted it yet"}
        state = self._states.get(entry.id)
        if state is not None and state.alive:
            return _living(state)
        if made:
            return {"state": "done"}
        node = events.last.get("node")
        if not self.note or events.kind == "end":
            return {"state": "failed", "reason": _end(state, events), "node": node}
        if events.kind == "start":
            return {"state": "running", "node": node, "started": events.started}
        reasons = {"time limit": "after its time limit", "terminated": "stopped"}
        return {"state": "pending", "reason": reasons.get(events.kind, "")}


def read_events(entry: Entry) -> Events:
    """Return the events of a job; unusable lines are skipped with a warning."""
    try:
        noted, damage = records.read_events(entry.events)
        written = entry.events.stat().st_mtime
    except OSError:
        return Events()
    if damage:
        log.warning("%s; skipped", damage)
    kinds = [event["event"] for event in noted]
    return Events(noted[-1] if noted else {}, kinds.count("start"), kinds.count("time limit"), written)


def _living(state: slurm.JobState) -> dict[str, str | None]:
    reason = state.reason if state.reason not in NOTHING else ""
    start = state.start if state.start not in NOTHING else None
    if state.state in RUNNING:
        reason = "" if state.state == "RUNNING" else state.state.lower()
        return {"state": "running", "reason": reason, "node": state.node or None, "started": start}
    if state.state != "PENDING":
        reason = f"{state.state.lower()} {reason}".strip()
    return {"state": "pending", "reason": reason, "expected": start}


def _end(state: slurm.JobState | None, events: Events) -> str:
    if events.kind == "end":
        code = events.last.get("exit")
        return f"exit code {code}" if code else "it succeeded, but its output is missing"
    if events.kind == "time limit":
        return f"its time limit was reached {events.time_limits} times"
    if state is None:
        return "SLURM no longer knows the job and its output is missing"
    detail = f", {state.reason}" if state.reason not in NOTHING else ""
    return f"SLURM ended it: {state.state}{detail}"
