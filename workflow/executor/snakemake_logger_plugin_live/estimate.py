"""Counts of the jobs of a run, and an estimate of the time that is left."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Jobs:
    """Jobs of a run, in seconds of one clock.

    Attributes:
        totals: number of jobs of each rule.
        began: time at which the run began.
        running: rule and start of each running job, by its id.
        seconds: durations of the finished jobs of each rule.
    """

    totals: Counter[str] = field(default_factory=Counter)
    began: float = 0.0
    running: dict[int, tuple[str, float]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def start(self, job: int, rule: str, now: float) -> None:
        """Add a job that starts."""
        self.running[job] = (rule, now)

    def finish(self, job: int, now: float) -> None:
        """Move a running job to the finished ones; a job that has never started is ignored."""
        if job in self.running:
            rule, started = self.running.pop(job)
            self.seconds.setdefault(rule, []).append(now - started)

    def drop(self, job: int) -> None:
        """Remove a running job that has failed; it may start again."""
        self.running.pop(job, None)

    @property
    def done(self) -> int:
        """Number of finished jobs."""
        return sum(map(len, self.seconds.values()))

    def seconds_left(self, now: float) -> float | None:
        """Return the estimated time until the last job ends, None before the first one has.

        A job is expected to take as long as the mean of its rule so far, or that of all rules, and as many jobs to run
        at a time as have run on average.
        """
        if not self.done:
            return None
        finished = sum(map(sum, self.seconds.values()))
        means = {rule: sum(times) / len(times) for rule, times in self.seconds.items()}
        mean = finished / self.done
        left = busy = 0.0
        waiting = Counter(self.totals)
        for rule, started in self.running.values():
            left += max(0.0, means.get(rule, mean) - (now - started))
            busy += now - started
            waiting[rule] -= 1
        for rule, count in waiting.items():
            left += max(0, count - len(self.seconds.get(rule, ()))) * means.get(rule, mean)
        at_a_time = max(1.0, (finished + busy) / max(now - self.began, 1e-9))
        return left / at_a_time
