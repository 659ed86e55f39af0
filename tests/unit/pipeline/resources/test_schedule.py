"""Tests of the simulation against a minute-by-minute one, on random small graphs."""

from __future__ import annotations

import math
import random
from functools import cache

import pytest

from patch.pipeline.resources.schedule import Outcome, Task, simulate


def random_tasks(seed: int) -> list[Task]:
    rng = random.Random(seed)
    tasks = []
    for index in range(rng.randint(1, 12)):
        needs = tuple(sorted(rng.sample(range(index), rng.randint(0, min(index, 3)))))
        scratch, kept = rng.randint(0, 5), rng.randint(0, 5)
        tasks.append(Task(rng.randint(1, 6), rng.randint(0, 3), needs, scratch + kept, scratch))
    return tasks


def minute_by_minute(tasks: list[Task], slots: float, jobs: float) -> Outcome:
    waiting = set(range(len(tasks)))
    since: dict[int, int] = {}
    ends: dict[int, int] = {}
    minute = 0
    disk = peak = 0.0
    while waiting or any(end > minute for end in ends.values()):
        disk -= sum(tasks[index].frees for index, end in ends.items() if end == minute)
        for index in waiting:
            if all(ends.get(need, math.inf) <= minute for need in tasks[index].needs):
                since.setdefault(index, minute)
        for index in sorted(waiting & set(since), key=lambda index: (since[index], index)):
            running = [other for other, end in ends.items() if end > minute]
            if len(running) < jobs and tasks[index].slots + sum(tasks[other].slots for other in running) <= slots:
                waiting.remove(index)
                ends[index] = minute + tasks[index].minutes
                disk += tasks[index].claims
        peak = max(peak, disk)
        minute += 1
    return Outcome(max(ends.values(), default=0), peak)


@pytest.mark.parametrize("seed", range(60))
def test_as_minute_by_minute(seed: int) -> None:
    tasks = random_tasks(seed)
    for slots, jobs in ((3, math.inf), (4, 2), (7, math.inf), (math.inf, 1), (math.inf, math.inf)):
        assert simulate(tasks, slots, jobs) == minute_by_minute(tasks, slots, jobs)


@pytest.mark.parametrize("seed", range(20))
def test_without_limits_it_is_the_longest_chain(seed: int) -> None:
    tasks = random_tasks(seed)

    @cache
    def end(index: int) -> float:
        return tasks[index].minutes + max((end(need) for need in tasks[index].needs), default=0)

    assert simulate(tasks).minutes == max(map(end, range(len(tasks))))
    assert simulate(tasks, jobs=1).minutes == sum(task.minutes for task in tasks)


def test_by_hand() -> None:
    # Two GPUs: a (2) first, then b and c (1 each); d needs both of them.
    tasks = [Task(10, 2), Task(5, 1), Task(7, 1), Task(1, 0, (1, 2))]
    assert simulate(tasks, 2).minutes == 18
    assert simulate(tasks).minutes == 10
    # A job that does not fit beside a running one lets the next one start.
    assert simulate([Task(10, 1), Task(5, 2), Task(8, 1)], 2).minutes == 15


def test_nothing_to_do_takes_no_time() -> None:
    assert simulate([], 1) == Outcome(0, 0)


def test_a_task_that_never_fits() -> None:
    assert simulate([Task(1, 4)], 3) is None


def test_space_is_given_back() -> None:
    chain = [Task(1, 1, (), 10, 8), Task(1, 1, (0,), 10, 10), Task(1, 1, (1,), 1, 0)]
    assert simulate(chain, 1).peak_mb == 12  # two stay of the first while the second holds ten
    assert simulate([Task(1, 1, (), 10, 10)] * 3, 3).peak_mb == 30
    assert simulate([Task(1, 1, (), 10, 10)] * 3, 1).peak_mb == 10
