"""Text report of job states for a terminal of 120 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from textwrap import wrap

from patch.pipeline.monitor.jobs import BLOCKED, STATES, JobStatus
from patch.pipeline.reporting.units import aligned_lines, count, duration
from patch.pipeline.resources.cost import SLACK
from patch.pipeline.resources.jobs import Job, JobGraph
from patch.pipeline.resources.schedule import Task, simulate

WIDTH = 120
# Row limits of the job tables. Failed jobs get fewer rows because each prints the end of its log.
ROWS, FAILED_ROWS = 50, 20
ALWAYS = ("done", "running", "pending", "failed", "waiting")
# Column headings and values. A column that is empty in all rows is left out.
_COLUMNS: dict[str, Callable[[JobStatus], str]] = {
    "rule": lambda s: s.rule,
    "model": lambda s: s.model or "",
    "run": lambda s: s.run,
    "job": lambda s: s.job or "",
    "node": lambda s: s.node or "",
    "since": lambda s: _when(s.started),
    "expected": lambda s: _when(s.expected),
    "step": lambda s: "" if s.step is None else f"{s.step}/{s.steps}" if s.steps else f"{s.step}",
    "left": lambda s: _left(s.eta_seconds),
    "restarts": lambda s: _restarts(s),
    "why": lambda s: " ".join(s.reason.split()),
}
_RIGHT = ("step", "left")
# Maximum width of a field in a table whose lines do not fit the terminal.
_FIELD = 40


def to_text(graph: JobGraph, statuses: dict[Job, JobStatus], note: str = "", everything: bool = False) -> str:
    """Return a report with the stages, the active and failed jobs, and a forecast of the remaining time.

    Args:
        graph: the jobs.
        statuses: status of each job.
        note: line about unknown states, empty if there are none.
        everything: list all jobs without a row limit.
    """
    all_statuses = list(statuses.values())
    counts = Counter(status.state for status in all_statuses)
    head = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    lines = [f"{graph.plan.experiment.experiment}: {len(all_statuses)} jobs: {head}"]
    lines += [shorten(note, WIDTH)] if note else []
    lines += ["", *_stages(graph, statuses)]
    for state in STATES if everything else ("running", "started", "pending", "failed"):
        chosen = [status for status in all_statuses if status.state == state]
        if chosen:
            lines += ["", *_section(state, chosen, everything)]
    warned = [status for status in all_statuses if status.warning]
    if warned:
        lines += ["", f"warnings ({len(warned)})"]
        for status in warned:
            text = f"{status.model} {status.run}: {status.warning}"
            lines += wrap(text, WIDTH, initial_indent="  ", subsequent_indent="      ")
    last = _outlook(graph, statuses)
    return "\n".join([*lines, *([""] if last else []), *last])


def _stages(graph: JobGraph, statuses: dict[Job, JobStatus]) -> list[str]:
    """Return a table of job counts by stage and state."""
    by_stage = {stage: Counter(statuses[job].state for job in jobs) for stage, jobs in graph.stages.items()}
    states = [state for state in STATES if state in ALWAYS or any(counts[state] for counts in by_stage.values())]
    rows = [["stage", "jobs", *states]]
    for stage, counts in by_stage.items():
        if counts:
            rows.append([stage, f"{counts.total()}", *(f"{counts[state] or '-'}" for state in states)])
    return aligned_lines(rows)


def _section(state: str, statuses: list[JobStatus], everything: bool) -> list[str]:
    limit = len(statuses) if everything else FAILED_ROWS if state == "failed" else ROWS
    # Reasons of failed jobs get lines of their own because messages of sbatch are long.
    shown = [head for head in _COLUMNS if head != "why" or state != "failed"]
    columns = {head: _COLUMNS[head] for head in shown if any(map(_COLUMNS[head], statuses))}
    rows = [[of(status) for of in columns.values()] for status in statuses[:limit]]
    left = [index for index, head in enumerate(columns) if head not in _RIGHT]
    head, *lines = _fitting_lines([list(columns), *rows], left)
    text = [f"{state} ({len(statuses)})", head]
    for status, line in zip(statuses, lines, strict=False):
        text.append(line)
        if state == "failed":
            text += wrap(status.reason, WIDTH, initial_indent="      ", subsequent_indent="      ")
            text += [shorten(f"      | {said}", WIDTH) for said in status.tail]
    if len(statuses) > limit:
        text.append(f"  ... and {len(statuses) - limit} more: --all")
    return text


def _outlook(graph: JobGraph, statuses: dict[Job, JobStatus]) -> list[str]:
    """Return a forecast of the remaining time, assuming that the slots of the running jobs stay available."""
    lines = []
    blocked = sum(status.reason == BLOCKED for status in statuses.values())
    if blocked:
        lines.append(f"{blocked} jobs wait for a failed job; they run after it has succeeded.")
    to_come = [job for job, s in statuses.items() if s.state not in ("done", "failed") and s.reason != BLOCKED]
    # Running jobs come first so that they occupy their slots from the start of the simulation.
    to_come.sort(key=lambda job: statuses[job].state != "running")
    running = [job for job in to_come if statuses[job].state == "running"]
    slots = sum(job.slots for job in running)
    index = {job: number for number, job in enumerate(to_come)}
    tasks = []
    for job in to_come:
        eta, needs = statuses[job].eta_seconds, () if job in running else job.needs
        minutes = job.minutes if eta is None else eta / 60
        tasks.append(Task(minutes, job.slots, tuple(index[need] for need in needs if need in index)))
    outcome = simulate(tasks, slots) if running else None
    if outcome is not None:
        unit = "GPU" if graph.plan.experiment.resources.device == "cuda" else "core"
        held = f" on the {count(slots, unit)} that jobs hold now" if slots else ""
        lines += [
            f"To come: {len(to_come)} jobs, up to {duration(outcome.minutes)}{held}, by the progress of the running",
            f"jobs and the cost model's limits for the others (with a factor of {SLACK:g}).",
        ]
    return lines


def _fitting_lines(rows: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """Return rows as indented lines that fit the terminal, with the columns ``left`` left-aligned."""
    lines = aligned_lines(rows, left)
    if max(map(len, lines)) > WIDTH - 2:
        lines = aligned_lines([[shorten(text, _FIELD) for text in row] for row in rows], left)
    return [shorten(f"  {line}", WIDTH) for line in lines]


def shorten(text: str, width: int) -> str:
    """Return the text, cut to ``width`` characters."""
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _restarts(status: JobStatus) -> str:
    if not status.restarts:
        return ""
    limits = f" ({status.time_limits} at its limit)" if status.time_limits else ""
    return f"{status.restarts}{limits}"


def _left(seconds: int | None) -> str:
    if seconds is None:
        return ""
    return duration(seconds / 60) if seconds >= 90 else f"{seconds} s"


def _when(time: str | None) -> str:
    """Return `2030-01-02T03:04:05` as `01-02 03:04`; return other text unchanged and None as an empty string."""
    return f"{time[5:10]} {time[11:16]}" if time and time[10:11] == "T" else time or ""
