"""Order of timed calls, and statistics of their times."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from patch.inference.timing import DeviceTimer, interleaved, quartiles


def test_candidates_take_turns() -> None:
    calls: list[str] = []

    def call(name: str) -> Callable[[], int]:
        def function() -> int:
            calls.append(name)
            return len(calls)

        return function

    found = interleaved({name: call(name) for name in "abc"}, repeats=3, warmup=2)
    assert "".join(calls) == "abc" * 5
    assert found == {"a": [7, 10, 13], "b": [8, 11, 14], "c": [9, 12, 15]}


def test_quartiles_of_one_and_of_few() -> None:
    assert quartiles([3.0]) == {"median": 3.0, "low": 3.0, "high": 3.0}
    assert quartiles([1.0, 2.0, 4.0]) == {"median": 2.0, "low": 1.5, "high": 3.0}


def test_seconds_between_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 101.0, 103.5, 104.0])
    timer = DeviceTimer("cpu")
    with monkeypatch.context() as patched:
        patched.setattr(time, "perf_counter", lambda: next(times))
        for _ in range(4):
            timer.stamp()
    assert timer.seconds() == [1.0, 2.5, 0.5]
