"""How long jobs that need each other take on so many GPUs, by playing the run through."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A job as the simulation sees it.

    Attributes:
        minutes: how long it runs.
        slots: GPUs or cores that it holds meanwhile; 0 for a job that never waits.
        needs: indices of the tasks that must have ended.
        claims: MB of disk that it takes when it starts.
        frees: MB of disk that it gives back when it ends.
    """

    minutes: float
    slots: int = 0
    needs: tuple[int, ...] = ()
    claims: float = 0.0
    frees: float = 0.0


@dataclass(frozen=True)
class Run:
    """Outcome: wall time in minutes, and the largest disk space in MB that was held at once."""

    minutes: float
    peak_mb: float


def simulate(tasks: Sequence[Task], slots: float = math.inf, jobs: float = math.inf) -> Run | None:
    """Run ``tasks`` first come, first served: of the tasks that are ready, the one that waits longest starts.

    One that needs more slots than are free lets later ones pass. Without limits the time is that of the
    longest chain.

    Args:
        tasks: in any order, without cycles.
        slots: GPUs or cores.
        jobs: tasks that run at the same time, at most.

    Returns:
        The run, or None when a task needs more slots than there are.
    """
    if any(task.slots > slots for task in tasks):
        return None
    followers: list[list[int]] = [[] for _ in tasks]
    missing = [len(task.needs) for task in tasks]
    for index, task in enumerate(tasks):
        for need in task.needs:
            followers[need].append(index)
    # By slots, so that a task is found without passing over all that do not fit.
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
            return Run(now, peak)
        now = running[0][0]
        while running and running[0][0] == now:
            _, index = heapq.heappop(running)
            slots += tasks[index].slots
            disk -= tasks[index].frees
            for follower in followers[index]:
                missing[follower] -= 1
                if not missing[follower]:
                    is_ready(follower)
