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
    """Start and stop events that a job recorded on its nodes.

    Attributes:
        last: newest event.
        starts: number of starts.
        time_limits: number of time limits that were reached.
        written: time of the newest event by the clock of the file system, None if there are no events.
    """

    last: dict = field(default_factory=dict)
    starts: int = 0
    time_limits: int = 0
    written: float | None = None

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


@dataclass(frozen=True)
class Verdict:
    """State of a submission that has no outcome in the ledger.

    Attributes:
        state: `pending`, `running`, `failed` or `done`.
        reason: reason why the job waits or failed.
        node: name of the node that the job runs on.
        started: start time by the clock of SLURM, or of the node if SLURM does not answer.
        expected: start time that SLURM expects.
    """

    state: str
    reason: str = ""
    node: str | None = None
    started: str | None = None
    expected: str | None = None


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
            self.note = f"{folder}: cannot be read ({error.strerror}); what SLURM does is not known"
        except WorkflowError as error:
            self.note = f"what SLURM does is not known: {error}"
        else:
            entries = history.entries
            for damage in history.damage.values():
                log.warning("%s; passed over", damage)
        self._by_output: dict[str, Entry] = {}
        for entry in sorted(entries.values(), key=lambda entry: (entry.run.name, entry.submitted)):
            self._by_output.update(dict.fromkeys(entry.outputs, entry))
        # squeue is called after the ledger is read, so that a job with an id that squeue does not list has ended.
        if any(entry.outcome is None for entry in self._by_output.values()):
            try:
                self._states = slurm.read_squeue()
            except slurm.SlurmError as error:
                self.note = f"no answer from SLURM, told from files alone ({str(error).splitlines()[-1]})"

    def newest(self, outputs: Iterable[str]) -> Entry | None:
        """Return the newest submission that makes one of these files, or None."""
        return next((self._by_output[path] for path in outputs if path in self._by_output), None)

    def judge(self, entry: Entry, events: Events, made: bool) -> Verdict:
        """Return the state of a submission that has no outcome in the ledger.

        Args:
            entry: the submission.
            events: its events.
            made: True if its outputs exist.
        """
        if entry.id is None:
            return Verdict("pending", "SLURM has not taken it yet")
        state = self._states.get(entry.id)
        if state is not None and state.alive:
            return _living(state)
        if made:
            return Verdict("done")
        if self.note and events.kind != "end":
            if events.kind == "start":
                return Verdict("running", node=events.last.get("node"), started=events.started)
            return Verdict(
                "pending", {"time limit": "after its time limit", "terminated": "stopped"}.get(events.kind, "")
            )
        return Verdict("failed", _end(state, events), events.last.get("node"))


def read_events(entry: Entry) -> Events:
    """Return the events of a job; unusable lines are skipped with a warning."""
    try:
        noted, damage = records.read_events(entry.events)
        written = entry.events.stat().st_mtime
    except OSError:
        return Events()
    if damage:
        log.warning("%s; passed over", damage)
    kinds = [event["event"] for event in noted]
    return Events(noted[-1] if noted else {}, kinds.count("start"), kinds.count("time limit"), written)


def _living(state: slurm.JobState) -> Verdict:
    reason = state.reason if state.reason not in NOTHING else ""
    start = state.start if state.start not in NOTHING else None
    if state.state in RUNNING:
        reason = "" if state.state == "RUNNING" else state.state.lower()
        return Verdict("running", reason, state.node or None, start)
    if state.state != "PENDING":
        reason = f"{state.state.lower()} {reason}".strip()
    return Verdict("pending", reason, expected=start)


def _end(state: slurm.JobState | None, events: Events) -> str:
    if events.kind == "end":
        code = events.last.get("exit")
        return f"exit code {code}" if code else "it ended well, but its output is not there"
    if events.kind == "time limit":
        return f"its time limit was reached {events.time_limits} times"
    if state is None:
        return "SLURM no longer knows the job and its output is not there"
    detail = f", {state.reason}" if state.reason not in NOTHING else ""
    return f"SLURM ended it: {state.state}{detail}"
