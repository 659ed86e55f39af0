"""Simulation of the wall time and disk space of dependent jobs on a number of GPUs."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A job in the simulation.

    Attributes:
        minutes: Wall time in minutes.
        slots: GPUs or cores that the job holds while it runs; 0 if it needs none.
        needs: Indices of the tasks that must end before the job starts.
        claims: Disk space in MB that the job allocates when it starts.
        frees: Disk space in MB that is released when the job ends.
    """

    minutes: float
    slots: int = 0
    needs: tuple[int, ...] = ()
    claims: float = 0.0
    frees: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """Result of a simulation: wall time in minutes, and peak disk space in MB."""

    minutes: float
    peak_mb: float


def simulate(tasks: Sequence[Task], slots: float = math.inf, jobs: float = math.inf) -> Outcome | None:
    """Simulate ``tasks`` with a first-come, first-served scheduler.

    Among the ready tasks that fit in the free slots, the task that has waited longest starts. A task that does not fit
    does not block later tasks. Without limits the wall time is that of the longest chain of tasks.

    Args:
        tasks: Tasks in any order, without cycles.
        slots: Number of GPUs or cores.
        jobs: Maximum number of tasks that run at the same time.

    Returns:
        The result, or None if a task needs more slots than ``slots``.
    """
    if any(task.slots > slots for task in tasks):
        return None
    followers: list[list[int]] = [[] for _ in tasks]
    missing = [len(task.needs) for task in tasks]
    for index, task in enumerate(tasks):
        for need in task.needs:
            followers[need].append(index)
    # One queue for each number of slots, so that the search skips tasks that do not fit.
    ready: dict[int, list[tuple[float, int]]] = {}
    running: list[tuple[float, int]] = []
    now = disk = peak = 0.0

    def is_ready(index: int) -> None:
        heapq.heappush(ready.setdefault(tasks[index].slots, []), (now, index))

    for index, count in enumerate(missing):
        if not count:
            is_ready(index)
    while True:
        while len(running) < jobs:
            fitting = [queue for size, queue in ready.items() if queue and size <= slots]
            if not fitting:
                break
            _, index = heapq.heappop(min(fitting, key=lambda queue: queue[0]))
            task = tasks[index]
            slots -= task.slots
            disk += task.claims
            heapq.heappush(running, (now + task.minutes, index))
        peak = max(peak, disk)
        if not running:
            return Outcome(now, peak)
        now = running[0][0]
        while running and running[0][0] == now:
            _, index = heapq.heappop(running)
            slots += tasks[index].slots
            disk -= tasks[index].frees
            for follower in followers[index]:
                missing[follower] -= 1
                if not missing[follower]:
                    is_ready(follower)
