"""What is timed, in what order, and what is made of it; with clocks that are not the machine's."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
import torch

from patch.inference.measure import Marks, Spread, captured, interleaved, timed


class Clock:
    """A clock that runs only where it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def takes(self, *seconds: float) -> Callable[[], None]:
        """A function that takes so long, call by call; then as long as the last."""
        left = list(seconds)

        def function() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return function


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


def test_warm_up_does_not_count_and_twenty_runs_are_the_default() -> None:
    clock = Clock()
    fast, slow = clock.takes(50.0, 50.0, 50.0, *map(float, range(1, 21))), clock.takes(2.0)
    found = timed({"fast": fast, "slow": slow}, clock=clock)
    low, median, high = statistics.quantiles(range(1, 21), n=4, method="inclusive")
    assert found["fast"] == Spread(median, low, high)
    assert found["slow"] == Spread(2.0, 2.0, 2.0)


def test_a_slow_minute_is_everyones() -> None:
    """A machine that gets slower all the time leaves the ratio of two candidates as it is."""
    clock = Clock()
    first, second = (clock.takes(*(factor * (1 + 0.1 * turn) for turn in range(23))) for factor in (1.0, 2.0))
    found = timed({"first": first, "second": second}, clock=clock)
    assert found["second"].median / found["first"].median == pytest.approx(2.0)


def test_spread_of_one_and_of_few() -> None:
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    assert Spread.of([1.0, 2.0, 4.0]) == Spread(2.0, 1.5, 3.0)


def test_marks_part_what_is_between_them() -> None:
    clock = Clock()
    marks = Marks("cpu", clock)
    for seconds in (1.0, 2.5, 0.5):
        marks.mark()
        clock.now += seconds
    marks.mark()
    assert marks.seconds() == [1.0, 2.5, 0.5]


def test_on_the_cpu_nothing_is_captured() -> None:
    called: list[int] = []
    found = timed({"one": lambda: called.append(1)}, repeats=4, warmup=0, device="cpu", graphs=True)
    assert len(called) == 4 and found["one"].median >= 0


def test_what_cannot_be_captured_is_told_in_one_line(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    monkeypatch.setattr(torch.cuda, "Stream", fails)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert captured(lambda: None, "step") is None
    assert capsys.readouterr().out == (
        "step: not captured in a CUDA graph, kernels are launched one by one "
        "(operation not permitted when stream is capturing)\n"
    )
