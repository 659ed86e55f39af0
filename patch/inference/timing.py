"""Timing of functions on a device. Candidates are interleaved so that drift affects all of them equally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return the `median`, and the quartiles `low` and `high` by linear interpolation, of one or more values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * [values[0]]
    return {"median": median, "low": low, "high": high}


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
