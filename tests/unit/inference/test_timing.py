"""Order of timed calls, and statistics of their times."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from patch.inference.timing import DeviceTimer, Measurement, interleaved, is_noisy, measure_in_rounds, quartiles

STEADY, WILD, WILDER = [4.0] * 4, [1.0, 4.0, 4.0, 7.0], [1.0, 1.0, 7.0, 7.0]


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


def test_noise_begins_above_a_fifth_of_the_median() -> None:
    assert not is_noisy({"median": 10.0, "low": 9.0, "high": 11.0})
    assert is_noisy({"median": 10.0, "low": 9.0, "high": 11.1})


class Machine:
    """Functions whose seconds in each round are given; the calls are recorded."""

    def __init__(self, **rounds: list[list[float]]) -> None:
        self.seconds = {name: iter(sum(values, [])) for name, values in rounds.items()}
        self.calls = ""

    def call(self, name: str) -> Callable[[], float]:
        def function() -> float:
            self.calls += name
            return next(self.seconds[name])

        return function

    def measure(self, rounds: int = 3) -> dict[str, Measurement]:
        def quantities(values: list[float], reference: list[float]) -> dict[str, dict[str, float]]:
            pairs = zip(reference, values, strict=True)
            return {"seconds": quartiles(values), "ratio": quartiles([one / other for one, other in pairs])}

        functions = {name: self.call(name) for name in self.seconds}
        return measure_in_rounds(functions, "a", quantities, repeats=4, warmup=0, rounds=rounds)


def test_quiet_functions_are_measured_in_one_round() -> None:
    machine = Machine(a=[STEADY], b=[[2.0] * 4])
    found = machine.measure()
    assert machine.calls == "abab" * 2
    assert [(one.rounds, one.noisy) for one in found.values()] == [(1, []), (1, [])]
    assert found["b"].quantities["ratio"]["median"] == 2.0


def test_a_noisy_function_is_measured_again_beside_the_reference() -> None:
    machine = Machine(a=[STEADY, [6.0] * 4], b=[WILD, [2.0] * 4], c=[STEADY])
    found = machine.measure()
    assert machine.calls == "abc" * 4 + "ab" * 4, "no further call of a quiet function"
    assert found["b"] == Measurement({"seconds": quartiles([2.0] * 4), "ratio": quartiles([3.0] * 4)}, rounds=2)
    assert found["a"] == Measurement({"seconds": quartiles(STEADY), "ratio": quartiles([1.0] * 4)}, rounds=1)


def test_a_noisy_reference_is_measured_again() -> None:
    machine = Machine(a=[WILD, STEADY])
    found = machine.measure()
    assert machine.calls == "a" * 8
    assert found["a"] == Measurement({"seconds": quartiles(STEADY), "ratio": quartiles([1.0] * 4)}, rounds=2)


def test_lasting_noise_ends_after_the_last_round_with_the_least_noisy_one() -> None:
    machine = Machine(a=[STEADY] * 3, b=[WILDER, WILD, WILDER])
    found = machine.measure()
    assert machine.calls == "ab" * 12
    assert found["b"].noisy == ["seconds", "ratio"] and found["b"].rounds == 3
    assert found["b"].quantities["seconds"] == quartiles(WILD)
    assert Machine(a=[STEADY], b=[WILD]).measure(rounds=1)["b"].rounds == 1


def test_fewer_noisy_quantities_count_before_less_noise() -> None:
    """Check that a round with one very noisy quantity is preferred to a round with two noisy ones."""
    one = Measurement({"seconds": quartiles(WILDER), "ratio": quartiles(STEADY)})
    two = Measurement({"seconds": quartiles(WILD), "ratio": quartiles(WILD)})
    assert min(two, one, key=lambda measurement: measurement.noise) is one
