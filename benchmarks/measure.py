"""Measurements that the benchmarks share: times of calls in turn, peak memory, and tables."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

from tabulate import tabulate

Name = TypeVar("Name", bound=Hashable)


class Cost(NamedTuple):
    """Cost of one call: its result, seconds, and peak memory in MB beside what was in use before, result included."""

    result: Any
    seconds: float
    megabytes: float


def timed(function: Callable[[], object], device: str = "cpu") -> Callable[[], float]:
    """Return a function that calls another and returns the seconds that it takes on the device."""
    from patch.inference.timing import DeviceTimer

    def call() -> float:
        timer = DeviceTimer(device)
        timer.stamp()
        function()
        timer.stamp()
        return timer.seconds()[0]

    return call


def seconds_in_turn(
    functions: Mapping[Name, Callable[[], object]], repeats: int, warmup: int, device: str = "cpu"
) -> dict[Name, list[float]]:
    """Return the seconds of ``repeats`` calls of each function, called in turn after ``warmup`` calls of each."""
    from patch.inference.timing import interleaved

    return interleaved({name: timed(function, device) for name, function in functions.items()}, repeats, warmup)


def paired_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median ratio of measurements of the same turn, so that drift of the machine cancels out."""
    return median(one / other for one, other in zip(over, under, strict=True))


def resident_mb(field: str = "VmRSS") -> float:
    """Return the memory of this process in MB: `VmRSS` now, `VmHWM` at its peak since `reset_peak`."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000


def reset_peak() -> None:
    """Reset the peak memory of this process."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(call: Callable[[], Any], cuda: bool = False) -> Cost:
    """Call a function once and return its cost, of the GPU's memory if ``cuda``."""
    import torch

    gc.collect()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1e6
    else:
        # Memory freed by earlier calls would hide allocations of this call.
        ctypes.CDLL(None).malloc_trim(0)
        reset_peak()
        before = resident_mb()
    started = time.perf_counter()
    result = call()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() / 1e6 if cuda else resident_mb("VmHWM")
    return Cost(result, seconds, peak - before)


def shown(found: Mapping[str, float], noisy: bool, decimals: int, factor: float = 1.0) -> str:
    """Return the median times ``factor`` with half the interquartile range; a noisy one is marked with a dagger."""
    half = (found["high"] - found["low"]) / 2
    return f"{factor * found['median']:.{decimals}f} ± {factor * half:.{decimals}f}{' †' * noisy}"


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows of text as a table: the first column left-aligned, the others right-aligned."""
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers, tablefmt="simple", colalign=align if rows else None, disable_numparse=True)
