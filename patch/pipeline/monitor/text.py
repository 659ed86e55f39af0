"""Text report of job states for a terminal of 120 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from textwrap import wrap

from patch.pipeline.monitor.jobs import BLOCKED, STATES, JobStatus
from patch.pipeline.reporting.units import duration
from patch.pipeline.resources.cost import SLACK
from patch.pipeline.resources.jobs import STAGES, Job, JobGraph
from patch.pipeline.resources.schedule import Task, simulate

WIDTH = 120
# Row limits of the job tables. Failed jobs get fewer rows because each prints the end of its log.
ROWS, FAILED_ROWS = 50, 20
ALWAYS = ("done", "running", "pending", "failed", "waiting")
# Column headings and values. A column of `_COLUMNS` that is empty in all rows is left out.
_NAMES: dict[str, Callable[[JobStatus], str]] = {
    "rule": lambda s: s.rule,
    "model": lambda s: s.model or "",
    "run": lambda s: s.run,
}
_COLUMNS: dict[str, Callable[[JobStatus], str]] = {
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
# Minimum width of a text column that is cut to fit the terminal.
_NARROWEST = 12


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
    lines += ["", *_stages(all_statuses)]
    for state in STATES if everything else ("running", "started", "pending", "failed"):
        chosen = [status for status in all_statuses if status.state == state]
        if chosen:
            lines += ["", *_section(state, chosen, everything)]
    last = _outlook(graph, statuses)
    return "\n".join([*lines, *([""] if last else []), *last])


def _stages(statuses: list[JobStatus]) -> list[str]:
    """Return a table of job counts by stage and state."""
    by_stage = {stage: Counter(s.state for s in statuses if s.stage == stage) for stage in STAGES}
    states = [state for state in STATES if state in ALWAYS or any(counts[state] for counts in by_stage.values())]
    rows = [["stage", "jobs", *states]]
    for stage, counts in by_stage.items():
        if counts:
            rows.append(
                [stage, f"{counts.total()}", *(f"{counts[state]}" if counts[state] else "-" for state in states)]
            )
    return columns(rows, right=range(1, len(rows[0])))


def _section(state: str, statuses: list[JobStatus], everything: bool) -> list[str]:
    limit = len(statuses) if everything else FAILED_ROWS if state == "failed" else ROWS
    # Reasons of failed jobs get lines of their own because messages of sbatch are long.
    shown = {head: of for head, of in _COLUMNS.items() if head != "why" or state != "failed"}
    heads = _NAMES | {head: of for head, of in shown.items() if any(of(status) for status in statuses)}
    rows = [[of(status) for of in heads.values()] for status in statuses[:limit]]
    head, *lines = columns([list(heads), *rows], [index for index, head in enumerate(heads) if head in _RIGHT])
    text = [f"{state} ({len(statuses)})", f"  {head}"]
    for status, line in zip(statuses, lines, strict=False):
        text.append(f"  {line}")
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
        lines.append(f"{blocked} jobs wait for one that failed: they run once it has succeeded.")
    to_come = [job for job, s in statuses.items() if s.state not in ("done", "failed") and s.reason != BLOCKED]
    # Running jobs come first so that they occupy their slots from the start of the simulation.
    to_come.sort(key=lambda job: statuses[job].state != "running")
    running = [job for job in to_come if statuses[job].state == "running"]
    slots = sum(job.slots for job in running)
    index = {job: number for number, job in enumerate(to_come)}
    tasks = [
        Task(
            _minutes(job, statuses[job]),
            job.slots,
            () if job in running else tuple(index[need] for need in job.needs if need in index),
        )
        for job in to_come
    ]
    outcome = simulate(tasks, slots) if running else None
    if outcome is not None:
        unit = "GPU" if graph.plan.experiment.resources.device == "cuda" else "core"
        held = f" on the {slots} {unit}{'s' * (slots != 1)} that jobs hold now" if slots else ""
        lines += [
            f"To come: {len(to_come)} jobs, up to {duration(outcome.minutes)}{held}, by the progress of the running",
            f"jobs and the cost model's limits for the others (with a factor of {SLACK:g}).",
        ]
    return lines


def _minutes(job: Job, status: JobStatus) -> float:
    """Return the minutes left according to the job's report, or else the cost model's limit."""
    return job.minutes if status.eta_seconds is None else status.eta_seconds / 60


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Return rows as aligned lines with two spaces between columns; the columns ``right`` are right-aligned.

    If the lines are too wide, text columns are cut: the last one first, then the widest.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    *others, last = range(len(widths))
    for index in (last, *sorted(others, key=lambda index: -widths[index])):
        excess = sum(widths) + 2 * len(widths) - WIDTH
        if excess > 0 and index not in right:
            widths[index] -= min(excess, max(0, widths[index] - _NARROWEST))
    return [
        "  ".join(
            text.rjust(width) if index in right else shorten(text, width).ljust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


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
