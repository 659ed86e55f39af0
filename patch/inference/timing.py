"""Timing of functions on a device. Candidates are interleaved so that drift affects all of them equally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch

T = TypeVar("T")
Quartiles = dict[str, float]
# A quantity is noisy if its interquartile range exceeds this fraction of its median.
NOISY = 0.2


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the `median`, and the quartiles `low` and `high` by linear interpolation, of one or more values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * [values[0]]
    return {"median": median, "low": low, "high": high}


def relative_range(found: Quartiles) -> float:
    """Return the interquartile range as a fraction of the median, which is not zero."""
    return (found["high"] - found["low"]) / found["median"]


def is_noisy(found: Quartiles) -> bool:
    """Return whether the interquartile range is too large for the median to be compared with others."""
    return relative_range(found) > NOISY


class Measurement(NamedTuple):
    """Quartiles of each quantity of a function in one round of calls, and the number of rounds that it took."""

    quantities: dict[str, Quartiles]
    rounds: int = 1

    @property
    def noisy(self) -> list[str]:
        """Names of the quantities that are noisy."""
        return [name for name, found in self.quantities.items() if is_noisy(found)]

    @property
    def noise(self) -> tuple[int, float]:
        """Order of the rounds of a function: by the number of noisy quantities, then by the largest relative range."""
        return len(self.noisy), max(map(relative_range, self.quantities.values()))


class DeviceTimer:
    """Time stamps of a device, each taken when all work queued before it has ended.

    On `cuda` they are events, which need no synchronization between them; on the CPU, where calls block, clock times.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._stamps: list[Any] = []

    def stamp(self) -> None:
        """Take a time stamp."""
        self._stamps.append(torch.cuda.Event(enable_timing=True) if self._cuda else time.perf_counter())
        if self._cuda:
            self._stamps[-1].record()

    def seconds(self) -> list[float]:
        """Return the seconds between each time stamp and the next."""
        if not self._cuda:
            return [after - before for before, after in pairwise(self._stamps)]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairwise(self._stamps)]


def interleaved(functions: Mapping[str, Callable[[], T]], repeats: int, warmup: int = 1) -> dict[str, list[T]]:
    """Call functions in turn, A, B, C, A, B, C, ..., and return the results of each, call by call.

    Args:
        functions: name -> function.
        repeats: number of calls of each whose results are returned.
        warmup: number of calls of each before those.
    """
    found: dict[str, list[T]] = {name: [] for name in functions}
    for turn in range(-warmup, repeats):
        for name, function in functions.items():
            result = function()
            if turn >= 0:
                found[name].append(result)
    return found


def measure_in_rounds(
    functions: Mapping[str, Callable[[], T]],
    reference: str,
    quantities: Callable[[list[T], list[T]], dict[str, Quartiles]],
    repeats: int,
    warmup: int = 1,
    rounds: int = 1,
) -> dict[str, Measurement]:
    """Call functions in turn, and call the noisy ones again in further rounds, in turn with the reference.

    Other work on the machine only lengthens calls, often for seconds. The result of a function is therefore its first
    round without a noisy quantity, or otherwise its least noisy round. Rounds are not pooled.

    Args:
        functions: name -> function.
        reference: name of the function that belongs to every round.
        quantities: function of the results of one function and of the reference in the same turns.
        repeats: number of calls of each function in a round.
        warmup: number of calls of each function before those.
        rounds: maximum number of rounds.
    """
    found: dict[str, Measurement] = {}
    pending = dict(functions)
    for number in range(1, rounds + 1):
        results = interleaved(pending, repeats, warmup)
        for name, values in results.items():
            new = Measurement(quantities(values, results[reference]), number)
            if name not in found:
                found[name] = new
            elif found[name].noisy:
                found[name] = min(found[name], new, key=lambda one: one.noise)._replace(rounds=number)
        pending = {name: functions[name] for name in functions if found[name].noisy or name == reference}
        if not any(measurement.noisy for measurement in found.values()):
            break
    return found
